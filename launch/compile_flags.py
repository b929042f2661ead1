"""XLA flags for programs that compile longer than they run."""

FAST_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)
"""A step compiles in a fifth of the time and runs slower: right for tests and for few steps."""
