"""Who may come in: host and origin checks, the API token, login links, permissions.

Owns what is refused before a view sees it. It does not know what the views do.
"""
