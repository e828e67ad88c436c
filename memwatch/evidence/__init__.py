"""Evidence: what grows, allocated where, held by whom.

`inquiry` decides when to look, `told` what follows from what was found.  `sites` knows where live memory was allocated (the
sampler `_sampler.c`, which reads the interpreter's frames with `_stacks.c`; else tracemalloc) and `survivors` which sampled blocks
stand for growth; `child` and `census` look at the heap in a forked child (`_heap.c`) and `holders` tells retaining paths in words;
`resources` knows descriptors, threads, child processes and tasks; `fallback` says what can be said without all that.

Law: the watched process pays for a few instructions per allocation and for the fork; nothing here runs code of the program.
"""

from memwatch.evidence.inquiry import Conclusion, Inquiry
from memwatch.evidence.sites import Sampling
from memwatch.evidence.told import Bounded, Moment

__all__ = ["Bounded", "Conclusion", "Inquiry", "Moment", "Sampling"]
