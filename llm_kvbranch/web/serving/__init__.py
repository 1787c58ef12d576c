"""A model that is served: started, listening, answering, logging.

Owns the process of ``llm kvbranch serve``: its sockets, its scheduler, and the path of
an answer into the log. It does not know the forms in which clients ask.
"""
