"""What others publish and table 1 needs: addresses, sizes, checksums, and where it lies below the kit's directory.

A checksum stands here where the publisher or a well-kept catalogue states it, with the place where it was read. Of the
other files the kit keeps the SHA-256 that it saw first, and notices when it changes.
"""

from typing import NamedTuple

WEIGHTS, CLIP = "weights/vicuna-7b-v1.5", "weights/clip-vit-large-patch14-336"
CAPTIONS, INSTRUCTIONS = "data/blip_laion_cc_sbu_558k.json", "data/llava_v1_5_mix665k.json"
IMAGES = "data/images"
_HUB = "https://huggingface.co"
_COCO = "http://images.cocodataset.org/zips"
_STANFORD = "https://cs.stanford.edu/people/rak248/VG_100K_2"
_GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa"
_TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa"
_POPE = (
    "https://raw.githubusercontent.com/AoiDragon/POPE/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
)
_SCIENCEQA = "https://raw.githubusercontent.com/lupantech/ScienceQA/main/data/scienceqa"
_MMBENCH = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
_TFDS = "tensorflow_datasets/url_checksums/coco.txt of github.com/tensorflow/datasets"


class Remote(NamedTuple):
    """A file that others publish."""

    path: str
    """Where it lies, below the kit's directory."""
    address: str
    """Where it is fetched from; "" where that takes a person, see `how`."""
    gb: float = 0.0
    """10^9 bytes, roughly; 0 where nobody says, or where it is below 10 MB."""
    bytes: int = 0
    """Exactly; 0 where that is not published."""
    sha256: str = ""
    """"" where it is not published."""
    source: str = ""
    """Where size and checksum were read."""
    into: str = ""
    """Folder that an archive is unpacked into; "" for other files."""
    strip: str = ""
    """What the names of an archive's members begin with, which is left out; members of other names stay packed."""
    only: str = ""
    """The one member that is unpacked; "" for all."""
    how: str = ""
    """Command or advice that takes the place of an address."""


class Download(NamedTuple):
    """Files that are fetched together."""

    name: str
    about: str
    remotes: tuple[Remote, ...]
    makes: tuple[str, ...]
    """Files and folders (with a slash behind) that are there afterwards."""
    links: tuple[tuple[str, str], ...] = ()
    """(place, what it shows): second places of images that are needed twice."""
    note: str = ""


def _hub(repository: str, folder: str, name: str, *more: object, kind: str = "") -> Remote:
    """A file of the Hugging Face Hub."""
    return Remote(f"{folder}/{name}", f"{_HUB}/{kind}{repository}/resolve/main/{name}", *more)  # type: ignore[arg-type]


def _page(repository: str, place: str) -> str:
    return f"huggingface.co/{repository}/{place}"


_VICUNA = "lmsys/vicuna-7b-v1.5"
_OPENAI = "openai/clip-vit-large-patch14-336"
_PRETRAIN, _INSTRUCT = "liuhaotian/LLaVA-Pretrain", "liuhaotian/LLaVA-Instruct-150K"

DOWNLOADS = (
    Download(
        "vicuna",
        "Vicuna-7B v1.5",
        (
            *(
                _hub(_VICUNA, WEIGHTS, name)
                for name in (
                    "config.json",
                    "generation_config.json",
                    "pytorch_model.bin.index.json",
                    "special_tokens_map.json",
                    "tokenizer.model",
                    "tokenizer_config.json",
                )
            ),
            _hub(
                _VICUNA,
                WEIGHTS,
                "pytorch_model-00001-of-00002.bin",
                9.98,
                0,
                "4133d2fcc5f31286881ea50806d95b721d016b533036a99dedce3f8fe88520e6",
                _page(_VICUNA, "blob/refs%2Fpr%2F7/pytorch_model-00001-of-00002.bin"),
            ),
            _hub(
                _VICUNA,
                WEIGHTS,
                "pytorch_model-00002-of-00002.bin",
                3.5,
                0,
                "d261d3c35e92d3070d1e61ed821ebfca812a847d2a880757d82728acf005c5ac",
                _page(
                    _VICUNA, "blob/ab33688181bd070d1bd698cbffd0f072a412ffe5/pytorch_model-00002-of-00002.bin"
                ),
            ),
        ),
        (f"{WEIGHTS}/",),
        note="pickles, which torch's weights-only loader reads: pip install torch",
    ),
    Download(
        "clip",
        "CLIP ViT-L/14 at 336 pixels",
        (
            _hub(_OPENAI, CLIP, "config.json"),
            _hub(_OPENAI, CLIP, "preprocessor_config.json"),
            _hub(
                _OPENAI,
                CLIP,
                "pytorch_model.bin",
                1.71,
                0,
                "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
                _page(_OPENAI, "blob/main/pytorch_model.bin"),
            ),
        ),
        (f"{CLIP}/",),
    ),
    Download(
        "captions",
        "558,128 captions of stage 1",
        (
            _hub(
                _PRETRAIN,
                "data",
                "blip_laion_cc_sbu_558k.json",
                0.181,
                0,
                "",
                _page(f"datasets/{_PRETRAIN}", "tree/main"),
                kind="datasets/",
            ),
            Remote(
                "downloads/llava_pretrain_images.zip",
                f"{_HUB}/datasets/{_PRETRAIN}/resolve/main/images.zip",
                27.4,
                source=_page(f"datasets/{_PRETRAIN}", "tree/main"),
                into=IMAGES,
            ),
        ),
        (CAPTIONS, f"{IMAGES}/00000/"),
    ),
    Download(
        "instructions",
        "665,298 conversations of stage 2",
        (
            _hub(
                _INSTRUCT,
                "data",
                "llava_v1_5_mix665k.json",
                1.03,
                1029887963,
                "ce959ce6e23073ee1cd1a8a2ef1c633768c10d4174327b8b2dc7113b91af6cf8",
                _page(f"datasets/{_INSTRUCT}", "commit/011f884bcf152693aca1d531d067f31e748bea02"),
                kind="datasets/",
            ),
        ),
        (INSTRUCTIONS,),
    ),
    Download(
        "coco",
        "their images of COCO",
        (
            Remote(
                "downloads/train2017.zip",
                f"{_COCO}/train2017.zip",
                19.3,
                19336861798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                _TFDS,
                into="data/coco",
            ),
        ),
        ("data/coco/train2017/",),
    ),
    Download(
        "gqa",
        "GQA: images of stage 2 and of the benchmark, and its answers",
        (
            Remote("downloads/gqa_images.zip", f"{_GQA}/images.zip", 21.8, into="data/gqa"),
            Remote(
                "downloads/gqa_questions.zip",
                f"{_GQA}/questions1.2.zip",
                1.4,
                into="eval/gqa/data",
                only="testdev_balanced_questions.json",
            ),
        ),
        ("data/gqa/images/", "eval/gqa/data/testdev_balanced_questions.json"),
        (("eval/gqa/data/images", "data/gqa/images"),),
    ),
    Download(
        "ocr-vqa",
        "book covers of OCR-VQA",
        (),
        ("data/ocr_vqa/images/",),
        note="by hand, with the script that docs/Data.md and README.md of github.com/haotian-liu/LLaVA link to, into "
        "data/ocr_vqa/images, all as .jpg; each image comes from its own shop and some are gone: with "
        "--stage2-settings='--data.bad-rows skip' their rows are left out and counted",
    ),
    Download(
        "textvqa",
        "TextVQA: images of stage 2 and of the benchmark, and its answers",
        (
            Remote(
                "downloads/textvqa_images.zip",
                f"{_TEXTVQA}/images/train_val_images.zip",
                7.1,
                into="data/textvqa",
            ),
            Remote("eval/textvqa/TextVQA_0.5.1_val.json", f"{_TEXTVQA}/data/TextVQA_0.5.1_val.json"),
        ),
        ("data/textvqa/train_images/", "eval/textvqa/TextVQA_0.5.1_val.json"),
        (("eval/textvqa/train_images", "data/textvqa/train_images"),),
    ),
    Download(
        "visual-genome",
        "their images of Visual Genome",
        (
            Remote("downloads/vg_images.zip", f"{_STANFORD}/images.zip", 9.7, into="data/vg"),
            Remote("downloads/vg_images2.zip", f"{_STANFORD}/images2.zip", 5.5, into="data/vg"),
        ),
        ("data/vg/VG_100K/", "data/vg/VG_100K_2/"),
    ),
    Download(
        "questions",
        "LLaVA's questions of all benchmarks",
        (
            Remote(
                "downloads/eval.zip",
                "",
                into="eval",
                how="gdown 1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy -O {path}   # of docs/Evaluation.md of "
                "github.com/haotian-liu/LLaVA; pip install gdown",
            ),
        ),
        (
            "eval/gqa/llava_gqa_testdev_balanced.jsonl",
            "eval/MME/llava_mme.jsonl",
            "eval/pope/llava_pope_test.jsonl",
            "eval/scienceqa/llava_test_CQM-A.json",
            "eval/textvqa/llava_textvqa_val_v051_ocr.jsonl",
            "eval/vizwiz/llava_test.jsonl",
            "eval/vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",
        ),
    ),
    Download(
        "pope",
        "POPE's labels, and COCO's images of 2014",
        (
            *(
                Remote(f"eval/pope/coco/coco_pope_{split}.json", f"{_POPE}/coco_pope_{split}.json")
                for split in ("adversarial", "popular", "random")
            ),
            Remote(
                "downloads/val2014.zip",
                f"{_COCO}/val2014.zip",
                6.6,
                6645013297,
                "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
                _TFDS,
                into="eval/pope",
            ),
        ),
        ("eval/pope/val2014/",),
    ),
    Download(
        "vqav2",
        "VQAv2's test images",
        (
            Remote(
                "downloads/test2015.zip",
                f"{_COCO}/test2015.zip",
                13.3,
                13270587935,
                "1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca",
                _TFDS,
                into="eval/vqav2",
            ),
        ),
        ("eval/vqav2/test2015/",),
    ),
    Download(
        "vizwiz",
        "VizWiz's test images",
        (
            Remote(
                "downloads/vizwiz_test.zip",
                "https://vizwiz.cs.colorado.edu/VizWiz_final/images/test.zip",
                into="eval/vizwiz",
            ),
        ),
        ("eval/vizwiz/test/",),
    ),
    Download(
        "scienceqa",
        "ScienceQA's problems and images",
        (
            Remote("eval/scienceqa/problems.json", f"{_SCIENCEQA}/problems.json"),
            Remote("eval/scienceqa/pid_splits.json", f"{_SCIENCEQA}/pid_splits.json"),
            Remote(
                "downloads/scienceqa_test.zip",
                "https://scienceqa.s3.us-west-1.amazonaws.com/images/test.zip",
                into="eval/scienceqa/images",
            ),
        ),
        ("eval/scienceqa/images/test/",),
    ),
    Download(
        "mme",
        "MME's images and answers",
        (
            Remote(
                "downloads/mme.zip",
                f"{_HUB}/datasets/darkyarding/MME/resolve/main/MME_Benchmark_release_version.zip",
                0.2,
                0,
                "1c4b79b494eae354df8fc0728c64fe4b89e46b4c609d36003be15dace6d8e3d7",
                _page("datasets/darkyarding/MME", "blob/main/MME_Benchmark_release_version.zip"),
                "eval/MME/MME_Benchmark_release_version",
                "MME_Benchmark_release_version/MME_Benchmark/",
            ),
        ),
        ("eval/MME/MME_Benchmark_release_version/color/",),
    ),
    Download(
        "mmbench",
        "MMBench dev",
        (Remote("eval/mmbench/mmbench_dev_20230712.tsv", f"{_MMBENCH}/mmbench_dev_20230712.tsv"),),
        ("eval/mmbench/mmbench_dev_20230712.tsv",),
    ),
)
TRAINING = ("captions", "instructions", "coco", "gqa", "ocr-vqa", "textvqa", "visual-genome")
BENCHMARKS = ("gqa", "textvqa", "questions", "pope", "vqav2", "vizwiz", "scienceqa", "mme", "mmbench")


def stand_in(download: Download) -> Download:
    """The same of stand-ins: sizes and checksums are not the published ones, and weights are safetensors, for which
    nobody needs torch."""
    bare = (
        one._replace(
            path=_without_pickle(one.path),
            address=_without_pickle(one.address),
            gb=0.0,
            bytes=0,
            sha256="",
            source="",
        )
        for one in download.remotes
    )
    return download._replace(remotes=tuple(bare))


def _without_pickle(name: str) -> str:
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
