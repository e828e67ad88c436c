"""The pytest plugin of memwatch: a gate for memory that people leave switched on.

`plugin` has the hooks that are always there, `gate` those that measure; `options` knows the settings, `limits` what applies to a
test, `measure` what it did, `rerun` repeats it, `judge` decides and says why, `results` is plain data, `terminal`, `files` and
`baseline` render it, `crashlog` outlives a killed worker.

Law: inert unless asked for; a test fails only by an exception raised in its own phase.
"""
