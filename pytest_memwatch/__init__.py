"""The pytest plugin of memwatch.  Not built yet: this release ships the watcher, the record and the command line."""
