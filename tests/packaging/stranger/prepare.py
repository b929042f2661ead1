"""Writes images/, rows.json in LLaVA's form and a tokenizer of its words, from easy-VQA's test images."""

import json
import shutil
from pathlib import Path

from quecc_jax.data.sources.easy_vqa import image_paths, questions
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer

if __name__ == "__main__":
    paths = image_paths("test")[:40]
    Path("images").mkdir()
    for number, path in enumerate(paths):
        shutil.copy(path, f"images/{number}.png")
    asked = [question for question in questions("test") if question.image < len(paths)]
    rows = [
        {
            "id": str(number),
            "image": f"{question.image}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question.text}"},
                {"from": "gpt", "value": question.answer},
            ],
        }
        for number, question in enumerate(asked)
    ]
    Path("rows.json").write_text(json.dumps(rows))
    train_word_tokenizer([text for question in asked for text in (question.text, question.answer)], "words")
