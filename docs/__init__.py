"The documentation; a package so that cog can import ``docs.tables``."
