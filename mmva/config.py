"""Base of the method's configurations, so that a recipe can nest them and name a field that is wrong."""

from pydantic import BaseModel, ConfigDict


class MethodConfig(BaseModel):
    """Unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
