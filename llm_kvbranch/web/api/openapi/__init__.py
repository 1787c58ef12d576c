"""The API as an OpenAPI document, made from the models that validate requests.

Owns the descriptions of addresses and responses. It does not know how requests are
answered.
"""

from .spec import document, openapi_json

__all__ = ["document", "openapi_json"]
