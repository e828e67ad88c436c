"""The dashboard: every record of this machine in a browser, live.  `memwatch serve` starts it; it needs `memwatch[web]`.

Law: only reads records, so that nothing in it needs a service to be alive.  What reads a file runs in a thread, one at a time; the
event loop only passes on what is ready.  Text from a watched process is shown, never obeyed: HTML is made by
`memwatch.report.parts` and by the functions here that go through it.
"""
