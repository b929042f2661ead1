"""Where grain keeps what `quecc_jax.data.grain_shim` reaches for."""

import grain
import pytest

ADVICE = (
    "grain has moved {}: look where its iterators keep their threads now, and change quecc_jax/data/grain_shim.py, "
    "or threads outlive DataIterator.close"
)


def test_a_prefetching_iterator_has_its_executor():
    iterator = iter(grain.MapDataset.range(8).to_iter_dataset(grain.ReadOptions(1, 1)))
    next(iterator)
    executor = getattr(iterator, "_executor", None)
    assert callable(getattr(executor, "shutdown", None)), ADVICE.format("DatasetIterator._executor")
    iterator.close()


def test_shared_arrays_are_freed_by_a_pool_of_threads():
    try:
        from grain._src.python.ipc.shared_memory_array import SharedMemoryArray
    except ImportError:
        pytest.fail(ADVICE.format("SharedMemoryArray"))
    assert hasattr(SharedMemoryArray, "_del_thread_pool"), ADVICE.format("SharedMemoryArray._del_thread_pool")
    SharedMemoryArray.enable_async_del(1)
    pool = SharedMemoryArray._del_thread_pool
    assert {"close", "join"} <= set(dir(pool)), ADVICE.format("the pool that frees shared arrays")
    pool.close()
    pool.join()
    SharedMemoryArray._del_thread_pool = None
