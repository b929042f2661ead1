"""What transformers' AutoProcessor reads beside a llava-hf model: images, prompts, the image's token."""

import dataclasses
import json
from pathlib import Path

from quecc_jax.config import RunConfig
from quecc_jax.convert.formats.llava_hf import IMAGE, class_of
from quecc_jax.convert.image_processor import image_settings
from quecc_jax.convert.sentencepiece_json import write_tokenizer_json
from quecc_jax.data.files import read_json, write_json
from quecc_jax.data.text.sentencepiece import Added
from quecc_jax.data.text.templates import TEMPLATES
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject


def image_token(tokenizer: Path) -> int:
    """The id of the image's token: its own where the tokenizer has one, else the first that is free.

    Raises:
      UserError: the tokenizer cannot be read.
    """
    vocabulary = load_tokenizer(tokenizer).hf.get_vocab()
    return vocabulary.get(IMAGE, max(vocabulary.values()) + 1)


def write_processor(folder: Path, config: RunConfig, hf: JsonObject) -> None:
    """Completes an export whose tokenizer files are there already.

    Args:
      folder: the export.
      config: the run.
      hf: the config.json of the export, see `llava_hf.hf_llava`.

    Raises:
      UserError: the tokenizer's files cannot take up the image's token.
    """
    vision = config.model.vision
    kind = f"{class_of(vision)}Processor"
    settings: JsonObject = {
        "processor_class": kind,
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": hf["vision_feature_select_strategy"],
        # The class, which "default" then takes away again.
        "num_additional_image_tokens": int(vision.cls),
        "image_token": IMAGE,
    }
    if vision.max_squares:
        settings |= {"num_image_tokens": vision.patches, "vision_aspect_ratio": hf["vision_aspect_ratio"]}
        del settings["patch_size"], settings["num_additional_image_tokens"]
    image_processor = image_settings(config, class_of(vision), hf.get("image_grid_pinpoints"))
    template = chat_template(config.data.template)
    write_json(folder / "processor_config.json", settings)
    write_json(folder / "preprocessor_config.json", {**image_processor, "processor_class": kind})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    # Where transformers before 4.52 looks, and nowhere else.
    write_json(folder / "chat_template.json", {"chat_template": template})
    _add_token(folder, hf["image_token_index"])


def _add_token(folder: Path, number: int) -> None:
    """Makes IMAGE a special token of the tokenizer whose files these are."""
    token = dataclasses.asdict(Added(IMAGE, normalized=False, special=True))
    path = folder / "tokenizer_config.json"
    told = read_json(path) if path.is_file() else {}
    added = {**told.get("added_tokens_decoder", {}), str(number): token}
    write_json(path, {**told, "added_tokens_decoder": added, "image_token": IMAGE})
    path = folder / "tokenizer.json"
    if (folder / "tokenizer.model").is_file():
        from tokenizers import AddedToken

        known = load_tokenizer(folder)
        tokens = {**known.hf.added_tokens_decoder, number: AddedToken(IMAGE, normalized=False, special=True)}
        write_tokenizer_json(folder, known, tokens, told.get("legacy") is not False)
    elif path.is_file():
        whole = read_json(path)
        others = [one for one in whole.get("added_tokens", []) if one["content"] != IMAGE]
        write_json(path, {**whole, "added_tokens": [*others, {"id": number, **token}]})
    path = folder / "added_tokens.json"
    if path.is_file():
        write_json(path, {**read_json(path), IMAGE: number})
    tokenizer = load_tokenizer(folder)
    if tokenizer.hf.convert_tokens_to_ids(IMAGE) != number or tokenizer.encode(f"a{IMAGE}")[-1] != number:
        raise UserError(
            f"the tokenizer of this run does not take {IMAGE} as token {number}; save it with "
            "save_pretrained as transformers does, and export again"
        )


def chat_template(name: str) -> str:
    """A conversation template as Jinja: what `templates.pieces` lays down, but for BOS in front.

    A message's content is a text, or a list of {"type": "image"} and {"type": "text", "text": ...}, whose
    images come first, a line each. It ends where an answer begins if the human speaks last.
    """
    template, quoted = TEMPLATES[name], lambda text: json.dumps(text, ensure_ascii=False)
    image, words = ("<image>", "''") if template.caption else ("<image>\n", "part['text']")
    human, answer = template.around_human, template.around_answer
    outside, inside = ("''", "opening") if template.system_in_turn else ("opening", "''")
    ending = "eos_token" if template.end is None else quoted(template.end)
    again = "bos_token" if template.bos_every_turn else "''"
    plain = "''" if template.caption else "content"
    return (
        "{%- macro said(content) -%}"
        f"{{%- if content is string -%}}{{{{ {plain} }}}}{{%- else -%}}"
        "{%- for part in content if part['type'] == 'image' -%}"
        f"{{{{ {quoted(image)} }}}}"
        "{%- endfor -%}{%- for part in content if part['type'] == 'text' -%}"
        f"{{{{ {words} }}}}"
        "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
        f"{{%- set system = {quoted(template.system)} -%}}"
        "{%- if messages[0]['role'] == 'system' -%}"
        "{%- set system = said(messages[0]['content']) -%}{%- endif -%}"
        f"{{%- set opening = {quoted(template.around_system[0])} + system + "
        f"{quoted(template.around_system[1])} if system or {template.empty_system} else '' -%}}"
        f"{{%- set now = namespace(bos='', lead={outside}, inside={inside}) -%}}"
        "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
        f"{{{{ now.bos + now.lead + {quoted(human[0])} + now.inside + said(message['content']) + "
        f"{quoted(human[1])} }}}}"
        f"{{%- set now.bos = {again} -%}}{{%- set now.lead = '' -%}}{{%- set now.inside = '' -%}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{ {quoted(answer[0])} + said(message['content']) + {quoted(answer[1])} + {ending} }}}}"
        f"{{%- set now.lead = {quoted(template.after)} -%}}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if messages[-1]['role'] == 'assistant' -%}{{ now.lead }}{%- endif -%}"
    )
