"""The base of every report's data model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A model whose fields cannot change, and which refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
