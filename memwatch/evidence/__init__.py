"""Evidence: what grows, allocated where, held by whom.

`inquiry` decides when to look, `suspicion` what is asked and concluded, `told` what follows from what was found.
`sources` knows where live memory was allocated (the sampler `_sampler.c`, which reads the interpreter's frames with `_stacks.c`;
else tracemalloc), `sites` tells growth by it and `survivors` which sampled blocks stand for growth; `child` and `census` look at
the heap in a forked child (`_heap.c`) and `holders` tells retaining paths in words;
`resources` knows descriptors, threads, child processes and tasks; `fallback` says what can be said without all that.

Law: the watched process pays for a few instructions per allocation and for the fork; nothing here runs code of the program.
"""

from memwatch.evidence.findings import Bounded, Conclusion, Moment
from memwatch.evidence.inquiry import Inquiry
from memwatch.evidence.sources import Sampling

__all__ = ["Bounded", "Conclusion", "Inquiry", "Moment", "Sampling"]
