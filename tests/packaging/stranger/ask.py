"""The public API: a question about an image, where the model looked, and what the answer costs."""

import quecc_jax

if __name__ == "__main__":
    engine = quecc_jax.load_engine("run")
    question = quecc_jax.Question("what color is the shape?", (engine.image("images/0.png"),))
    answers = engine.run([question], quecc_jax.Limits(max_new_tokens=4))
    for _, piece in answers:
        print(piece, end="", flush=True)
    attention = engine.attention(question)  # [I, V, H, g, g]
    assert attention is not None
    model = quecc_jax.load_config("run/config.json").model
    flops = quecc_jax.answer_flops(model, question=6, prompt=10, answer=4)
    print(f"\nV = {attention.shape[1]}; FLOPs: {flops}")
