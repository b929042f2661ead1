"""What is mutated, and which tests look at it: for each module those of its own, since compiling takes most of a
mutant's time."""

MODELS = "tests/models/test_"
COMPRESSORS, ELASTIC, GOLDEN = (
    f"{MODELS}{name}.py" for name in ("compressors", "elastic", "golden_compressors")
)
CHECKPOINTS = ("tests/train/test_checkpoint.py",)
TASKS = ("tests/evaluate/test_tasks.py", "tests/evaluate/test_metrics.py")

AREAS: dict[str, dict[str, tuple[str, ...]]] = {
    "compressors": {
        f"quecc_jax/models/compressors/{name}.py": tests
        for name, tests in {
            "avgpool": (COMPRESSORS, ELASTIC, "-k", "avgpool or average or elastic_convolution"),
            "base": (
                COMPRESSORS,
                f"{MODELS}quecc.py",
                "-k",
                "attention or resampler or conv or equal_the_originals",
            ),
            "conv": (COMPRESSORS, ELASTIC, "-k", "conv or resized"),
            "fusion": (f"{MODELS}llava_mini.py", f"{MODELS}quecc_plus.py"),
            "llava_mini": (f"{MODELS}llava_mini.py",),
            "m3": (COMPRESSORS, ELASTIC, "-k", "m3"),
            "mqt": (GOLDEN, COMPRESSORS, ELASTIC, "-k", "mqt"),
            "positions": (GOLDEN, COMPRESSORS, "-k", "mqt or resampler"),
            "prumerge": (f"{MODELS}prumerge.py",),
            "quecc": (f"{MODELS}quecc.py", ELASTIC, "-k", "quecc or conv or weight"),
            "quecc_plus": (f"{MODELS}quecc_plus.py",),
            "resampler": (COMPRESSORS, "-k", "resampler"),
            "tokenpacker": (GOLDEN, COMPRESSORS, ELASTIC, "-k", "tokenpacker"),
        }.items()
    },
    "loss": {"quecc_jax/train/loss.py": ("tests/train/test_loss.py", "tests/train/test_packed_loss.py")},
    "optimizer": {"quecc_jax/train/optimizer.py": ("tests/train/test_optimizer.py",)},
    "packing": {
        "quecc_jax/data/plans/packing.py": ("tests/data/test_packing.py", "tests/data/test_packing_plans.py")
    },
    "counts": {"quecc_jax/data/plans/counts.py": ("tests/data/test_counts.py",)},
    "sampler": {
        "quecc_jax/data/sampler.py": (
            "tests/data/test_sampler.py",
            "tests/train/test_validation.py",
            "-k",
            "order or hold",
        )
    },
    "few bits": {"quecc_jax/models/quantized.py": ("tests/models/test_quantized.py",)},
    "traffic": {"quecc_jax/aot/traffic.py": ("tests/aot/test_traffic.py",)},
    "checkpoint": {
        **{f"quecc_jax/train/{name}.py": CHECKPOINTS for name in ("checkpoint", "resume")},
        **{f"quecc_jax/{name}.py": ("tests/test_records.py",) for name in ("checksums", "records")},
    },
    "scorers": {
        f"quecc_jax/evaluate/{name}.py": TASKS
        for name in (
            "metrics",
            *(
                f"tasks/{task}"
                for task in ("ai2d", "base", "documents", "gqa", "mathvista", "mmbench", "mme")
            ),
            *(f"tasks/{task}" for task in ("mmmu", "pope", "scienceqa", "seed", "vqa")),
        )
    },
    "fit": {
        "scaling/fit.py": ("tests/scaling/test_fit.py", "tests/scaling/test_losses.py"),
        "scaling/solver.py": ("tests/scaling/test_fit.py", "tests/scaling/test_losses.py"),
        "scaling/law.py": ("tests/scaling/test_law.py",),
        "scaling/intervals.py": ("tests/scaling/test_intervals.py",),
        "scaling/diagnostics/bootstrap.py": ("tests/scaling/test_bootstrap.py",),
        "scaling/frontier.py": ("tests/scaling/test_frontier.py",),
        "scaling/diagnostics/holdout.py": ("tests/scaling/test_diagnostics.py",),
        "scaling/diagnostics/rivals.py": ("tests/scaling/test_diagnostics.py",),
        "scaling/diagnostics/joint.py": ("tests/scaling/test_joint.py",),
        "scaling/diagnostics/lack_of_fit.py": ("tests/scaling/test_lack_of_fit.py",),
        "scaling/design/worth.py": ("tests/scaling/test_next.py",),
    },
}
"""Parts of the numerical core, each with an equal share of the sample: pytest's arguments by module."""
