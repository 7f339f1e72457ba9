"""Shapes of pulls in requests and answers."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator


class PullIn(BaseModel):
    """What to pull, from where, and how to know that it is right."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "url": "https://node.hospital-b.example",
                    "package": "hospital-b/cxr@1.0.0",
                    "token": "ppdd_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG",
                    "key": "9f2c 0a41 77d3 5be8 1c60 e2aa 4b7f 930d 55c1 8e06 f4d9 2b73 a81e 6c05 d7f4 3e92",
                }
            ]
        },
    )

    url: str = Field(max_length=500, description="The other hospital's node: `https://HOST`.")
    package: str = Field(max_length=200, description="`site/name@version`.")
    token: SecretStr = Field(
        min_length=8,
        max_length=512,
        description="Issued by that hospital; kept sealed until the pull ends, and shown to nobody.",
    )

    @field_validator("token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
            raise ValueError("a token has no spaces, line breaks or letters beyond ASCII")
        return value

    key: str = Field(
        max_length=200,
        description="Fingerprint of that hospital's key, learned from the hospital itself over another channel.",
    )
