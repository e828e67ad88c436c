"""A gate for code: what a block, a function or a test keeps of memory and of the system's resources, and whether that is too much.

`readings` measures, `settling` brings the process to rest, `judging` decides (pure), `explaining` names the line and the holder,
`peaks` finds a high-water mark; `blocks`, `functions` and `objects` are what callers use, outside pytest as well as inside.

Law: nothing here fails a caller but `MemoryGrowth`, which is what they asked for.
"""

from memwatch.gate.blocks import Measured, checkpoint, limit
from memwatch.gate.functions import assert_no_leak
from memwatch.gate.judging import MemoryGrowth
from memwatch.gate.objects import assert_collected

__all__ = ["Measured", "MemoryGrowth", "assert_collected", "assert_no_leak", "checkpoint", "limit"]
