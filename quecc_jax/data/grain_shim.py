"""All that is used of grain beyond its public interface: closing an iterator leaves threads running.

`tests/data/test_grain_shim.py` fails when a release of grain moves these.
"""

import grain
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray


def close(iterator: grain.DatasetIterator, workers: int) -> None:
    """Closes an iterator and waits for the threads that grain leaves behind.

    Args:
      workers: how many worker processes it has.
    """
    reader = getattr(iterator, "_executor", None)
    iterator.close()
    if reader is not None:
        # It is still making the next batch.
        reader.shutdown(wait=True)
    if workers:
        # These free what worker processes have sent; grain makes new ones for the next iterator.
        threads, SharedMemoryArray._del_thread_pool = SharedMemoryArray._del_thread_pool, None
        if threads is not None:
            threads.close()
            threads.join()
