"""memwatch in the servers, frameworks and task queues that people run; each module is imported where it is wanted."""
