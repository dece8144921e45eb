"""The `openai` package, unmodified, against a running Tarn.  python openai_client.py BASE_URL     (openai 3.54)"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
models = [model.id for model in client.models.list()]
generator, embedder = models[0], models[1]
assert client.models.retrieve(generator).id == generator

done = client.completions.create(model=generator, prompt=["The capital of France is", "1, 2, 3,"], max_tokens=8, temperature=0, logprobs=2, echo=True)
assert len(done.choices) == 2 and done.choices[0].text.startswith("The capital of France is")
logprobs = done.choices[0].logprobs
assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
assert all(done.choices[0].text[offset:].startswith(token) for token, offset in zip(logprobs.tokens, logprobs.text_offset))
assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens

plain = client.completions.create(model=generator, prompt="Once upon a time", max_tokens=20, temperature=0).choices[0].text
pieces = list(client.completions.create(model=generator, prompt="Once upon a time", max_tokens=20, temperature=0, stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].text for c in pieces if c.choices) == plain
assert pieces[-1].usage.completion_tokens == 20 and pieces[-2].choices[0].finish_reason == "length"

messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
chat = client.chat.completions.create(model=generator, messages=messages, max_tokens=16, n=3, temperature=0.9, seed=7, logprobs=True, top_logprobs=3)
again = client.chat.completions.create(model=generator, messages=messages, max_tokens=16, n=3, temperature=0.9, seed=7)
assert [c.message.content for c in chat.choices] == [c.message.content for c in again.choices]
assert len({c.message.content for c in chat.choices}) > 1 and len(chat.choices[0].logprobs.content[0].top_logprobs) == 3
streamed = client.chat.completions.create(model=generator, messages=messages, max_tokens=16, temperature=0, stream=True)
text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
assert text == client.chat.completions.create(model=generator, messages=messages, max_tokens=16, temperature=0).choices[0].message.content
stopped = client.completions.create(model=generator, prompt="1, 2, 3,", max_tokens=30, temperature=0, stop=["6"])
assert stopped.choices[0].finish_reason == "stop" and "6" not in stopped.choices[0].text

vectors = client.embeddings.create(model=embedder, input=["a breaker", "a fuse"])
floats = client.embeddings.create(model=embedder, input=["a breaker", "a fuse"], encoding_format="float")
assert max(abs(a - b) for a, b in zip(vectors.data[1].embedding, floats.data[1].embedding)) < 1e-6

for call, kind in [
    (lambda: client.completions.create(model="none", prompt="x"), openai.NotFoundError),
    (lambda: client.completions.create(model=generator, prompt="x", temperature=9), openai.BadRequestError),
    (lambda: client.completions.create(model=generator, prompt="word " * 20000), openai.BadRequestError),
    (lambda: client.chat.completions.create(model=generator, messages=[]), openai.BadRequestError),
    (lambda: client.chat.completions.create(model=generator, messages=messages, tools=[{"type": "retrieval"}]), openai.BadRequestError),
    (lambda: client.embeddings.create(model=embedder, input=[]), openai.BadRequestError),
]:
    try:
        call()
    except kind as error:
        assert error.body["message"], error
    else:
        raise AssertionError(f"{kind} expected")
print("all openai client checks passed")
