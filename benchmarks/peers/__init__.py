"""Those whom llm-kvbranch is measured against, and how each of them is asked."""
