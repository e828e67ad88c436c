"""A gate for code: what a block, a function or a test keeps of memory and of the system's resources, and whether that is too much.

`readings` measures, `settling` brings the process to rest, `judging` decides (pure), `explaining` names the line and the holder,
`peaks` finds a high-water mark; `blocks`, `functions` and `objects` are what callers use, outside pytest as well as inside.

Law: importing this package imports none of its modules; nothing fails a caller but `MemoryGrowth`, which is what they asked for.
"""
