"""What the schemas of all objects have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Settings of one object; what is not listed is left to its constructor.

    A setting with a default may be left out. What it means then is up to the constructor, from which the default here
    can differ where several constructors share a schema.
    """

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True, protected_namespaces=())
