"""Base class of the method's configurations: a recipe can nest them, and its errors name the wrong field."""

from pydantic import BaseModel, ConfigDict


class MethodConfig(BaseModel):
    """Rejects unknown keys; values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
