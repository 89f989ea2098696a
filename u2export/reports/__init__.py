"""Building blocks of every report: frozen models, tables, text, pages, mask images."""
