"""From pictures to results, with any artifact on any runner."""
