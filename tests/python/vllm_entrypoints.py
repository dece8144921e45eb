"""What vLLM's users rely on, asked of a running Tarn through the `openai` package.

    python vllm_entrypoints.py BASE_URL [CHECK ..]                                                     (openai 3.57)

The checks follow what vLLM's own tests of its OpenAI server assert, in other words. The model must be small enough to
answer quickly and take chats; nothing here depends on which words it writes.
"""

import json
import sys
import urllib.error
import urllib.request

import openai
import pydantic

base = sys.argv[1].rstrip("/")
client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id
max_len = client.models.list().data[0].max_model_len


def raw(path, body):
    request = urllib.request.Request(base + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def ids(text, **more):
    return raw("/tokenize", {"model": model, "prompt": text, **more})["tokens"]


def complete(prompt="Hello, my name is", **more):
    more = {"max_tokens": 5, "temperature": 0.0, **more}
    return client.completions.create(model=model, prompt=prompt, **more)


def refused(call, kind=openai.BadRequestError, param=None):
    try:
        call()
    except kind as error:
        assert error.body["message"], error
        assert param is None or error.body["param"] == param, error.body
        return error
    raise AssertionError(f"{kind.__name__} expected")


def single_completion():
    done = complete()
    assert done.id.startswith("cmpl-") and done.object == "text_completion" and done.model == model
    assert len(done.choices) == 1 and len(done.choices[0].text) >= 1 and done.choices[0].finish_reason == "length"
    count = len(ids("Hello, my name is"))
    assert done.usage == openai.types.CompletionUsage(
        completion_tokens=5, prompt_tokens=count, total_tokens=count + 5,
        prompt_tokens_details=done.usage.prompt_tokens_details)
    by_ids = complete(ids("Hello, my name is"))
    assert by_ids.choices[0].text == done.choices[0].text
    assert by_ids.choices[0].logprobs is None


def logprobs_of_answers():
    for asked in (0, 1, 5, 20):
        found = complete(logprobs=asked).choices[0].logprobs
        assert len(found.token_logprobs) == len(found.tokens) == len(found.text_offset) == 5
        for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs):
            assert max(asked, 1) <= len(top) <= asked + 1 and logprob <= 0
            assert abs(top[token] - logprob) < 1e-5
    for wrong in (21, -1):
        refused(lambda: complete(logprobs=wrong), param="logprobs")


def echo():
    prompt = "Hello, my name is"
    tokens = ids(prompt)
    for given in (prompt, tokens):
        choice = complete(given, echo=True, logprobs=1).choices[0]
        assert choice.text.startswith(prompt)
        found = choice.logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == len(tokens) + 5
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        assert all(x is not None for x in found.token_logprobs[1:])
        assert "".join(found.tokens) == choice.text
        assert all(choice.text[at:].startswith(token) for token, at in zip(found.tokens, found.text_offset))
    assert complete(prompt, echo=True).choices[0].text == prompt + complete(prompt).choices[0].text
    # No token at all: how texts are scored.
    scored = complete(prompt, echo=True, logprobs=1, max_tokens=0)
    assert scored.choices[0].text == prompt and len(scored.choices[0].logprobs.tokens) == len(tokens)
    assert scored.usage.completion_tokens == 0 and scored.choices[0].finish_reason == "length"
    assert scored.choices[0].logprobs.token_logprobs[1:] == found.token_logprobs[1 : len(tokens)]


def prompt_logprobs():
    prompt = "Hello, my name is"
    tokens = ids(prompt)
    choice = complete(prompt, extra_body={"prompt_logprobs": 2}).choices[0]
    found = choice.prompt_logprobs
    assert len(found) == len(tokens) and found[0] is None
    for token, place in zip(tokens[1:], found[1:]):
        assert 2 <= len(place) <= 3 and set(place[str(token)]) == {"logprob", "rank", "decoded_token"}
        assert sorted(one["rank"] for one in place.values() if one["rank"])[:2] == [1, 2]
    assert not choice.text.startswith(prompt)
    refused(lambda: complete(stream=True, extra_body={"prompt_logprobs": 1}), param="prompt_logprobs")
    refused(lambda: complete(extra_body={"prompt_logprobs": -1}), param="prompt_logprobs")


def several_prompts_and_answers():
    prompts = ["The capital of France is", "1, 2, 3,"]
    alone = [complete(one).choices[0].text for one in prompts]
    for given in (prompts, [ids(one) for one in prompts]):
        done = complete(given)
        assert [choice.text for choice in done.choices] == alone
        assert [choice.index for choice in done.choices] == [0, 1]
    both = complete(prompts, n=3, temperature=1.0, seed=5, max_tokens=8)
    assert [choice.index for choice in both.choices] == list(range(6))
    assert len({choice.text for choice in both.choices[:3]}) > 1
    again = complete(prompts, n=3, temperature=1.0, seed=5, max_tokens=8)
    assert [a.text for a in again.choices] == [b.text for b in both.choices]
    streamed = [""] * 6
    for chunk in complete(prompts, n=3, temperature=1.0, seed=5, max_tokens=8, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in both.choices]


def forks():
    """A request of n answers is the same as n requests, whatever they share."""
    asked = {"temperature": 0.9, "seed": 21, "max_tokens": 8}
    prompt = "The quick brown fox jumps over the lazy dog and then it goes on to"
    together = complete(prompt, n=4, **asked)
    assert together.choices[0].text == complete(prompt, **asked).choices[0].text
    assert [c.text for c in together.choices[:2]] == [c.text for c in complete(prompt, n=2, **asked).choices]
    greedy = complete(prompt, n=3).choices
    assert {choice.text for choice in greedy} == {complete(prompt).choices[0].text}
    assert together.usage.prompt_tokens == len(ids(prompt))


def best_of():
    asked = {"temperature": 1.0, "seed": 3, "max_tokens": 6, "logprobs": 0}
    all_of_them = complete(n=5, **asked).choices
    mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
    best = complete(n=2, best_of=5, **asked)
    assert [choice.text for choice in best.choices] == [c.text for c in sorted(all_of_them, key=mean, reverse=True)[:2]]
    assert best.usage.completion_tokens == sum(len(c.logprobs.tokens) for c in all_of_them)
    refused(lambda: complete(n=3, best_of=2), param="best_of")
    refused(lambda: complete(best_of=2, stream=True), param="best_of")


def streams():
    prompt = "Once upon a time"
    whole = complete(prompt, max_tokens=12, logprobs=2)
    chunks = list(complete(prompt, max_tokens=12, logprobs=2, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]
    assert all(chunk.usage is None for chunk in chunks)
    offsets = [at for chunk in chunks if chunk.choices[0].logprobs for at in chunk.choices[0].logprobs.text_offset]
    assert offsets == whole.choices[0].logprobs.text_offset
    echoed = list(complete(prompt, stream=True, echo=True))
    assert "".join(chunk.choices[0].text for chunk in echoed) == prompt + complete(prompt).choices[0].text


def stream_options():
    prompt = "Once upon a time"
    *chunks, last = complete(prompt, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks) and last.choices == []
    assert last.usage.completion_tokens == 5 and last.usage.total_tokens == last.usage.prompt_tokens + 5
    both = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = complete(prompt, stream=True, stream_options=both)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 5 and last.choices == []
    assert all(chunk.usage.prompt_tokens == last.usage.prompt_tokens for chunk in chunks)
    without = {"include_usage": False, "continuous_usage_stats": True}
    assert all(chunk.usage is None for chunk in complete(prompt, stream=True, stream_options=without))
    for options in ({"include_usage": True}, {"include_usage": False}):
        refused(lambda: complete(prompt, stream_options=options), param="stream_options")


def token_ids():
    done = complete(logprobs=1, extra_body={"return_token_ids": True, "return_tokens_as_token_ids": True})
    choice = done.choices[0]
    assert choice.prompt_token_ids == ids("Hello, my name is") and len(choice.token_ids) == 5
    assert choice.logprobs.tokens == [f"token_id:{one}" for one in choice.token_ids]
    assert all(name in top for name, top in zip(choice.logprobs.tokens, choice.logprobs.top_logprobs))
    text = raw("/detokenize", {"model": model, "tokens": choice.prompt_token_ids + choice.token_ids})["prompt"]
    assert text.endswith(choice.text)
    chunks = [chunk.choices[0] for chunk in complete(stream=True, extra_body={"return_token_ids": True})]
    assert chunks[0].prompt_token_ids == choice.prompt_token_ids
    assert [one for chunk in chunks for one in chunk.token_ids] == choice.token_ids
    assert not any(hasattr(chunk, "prompt_token_ids") for chunk in chunks[1:])
    assert not hasattr(complete().choices[0], "token_ids")


def stops():
    whole = complete("1, 2, 3,", max_tokens=24).choices[0].text
    word = whole[8:11]
    for stop in (word, [word], [word, "never to be found"]):
        cut = complete("1, 2, 3,", max_tokens=24, stop=stop)
        assert cut.choices[0].text == whole[: whole.index(word)] and cut.choices[0].finish_reason == "stop"
        assert cut.choices[0].stop_reason == word and cut.usage.completion_tokens < 24
    kept = complete("1, 2, 3,", max_tokens=24, stop=word, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == whole[: whole.index(word) + len(word)]
    pieces = complete("1, 2, 3,", max_tokens=24, stop=word, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole[: whole.index(word)]
    both = complete("1, 2, 3,", max_tokens=24, stop=word, n=2, temperature=0.0)
    assert {choice.text for choice in both.choices} == {whole[: whole.index(word)]}
    # Of several answers each ends where its own text says.
    drawn = {"n": 4, "temperature": 1.0, "seed": 11, "max_tokens": 16}
    free = [choice.text for choice in complete("1, 2, 3,", **drawn).choices]
    mark = next(text[at : at + 2] for text in free for at in range(4, 12) if not all(text[at : at + 2] in one for one in free))
    ended = complete("1, 2, 3,", stop=mark, **drawn)
    for text, choice in zip(free, ended.choices):
        assert choice.text == text.split(mark)[0] and (choice.stop_reason == mark) == (mark in text)
    assert ended.usage.completion_tokens < complete("1, 2, 3,", **drawn).usage.completion_tokens
    first = complete(extra_body={"return_token_ids": True}).choices[0].token_ids[2]
    by_id = complete(extra_body={"stop_token_ids": [first], "return_token_ids": True}).choices[0]
    assert by_id.finish_reason == "stop" and by_id.stop_reason == first and by_id.token_ids[-1] == first
    at_least = complete(extra_body={"stop_token_ids": [first], "min_tokens": 5}).choices[0]
    assert at_least.finish_reason == "length"


def which_tokens():
    yes, no = ids(" yes", add_special_tokens=False)[0], ids(" no", add_special_tokens=False)[0]
    allowed = complete(extra_body={"allowed_token_ids": [yes, no], "return_token_ids": True}).choices[0]
    assert set(allowed.token_ids) <= {yes, no} and len(allowed.token_ids) == 5
    biased = complete(logit_bias={str(yes): 100}, extra_body={"return_token_ids": True}).choices[0]
    assert set(biased.token_ids) == {yes}
    refused(lambda: complete(logit_bias={"999999999": 1}), param="logit_bias")
    refused(lambda: complete(extra_body={"allowed_token_ids": [999999999]}), param="allowed_token_ids")
    refused(lambda: complete(extra_body={"allowed_token_ids": []}), param="allowed_token_ids")


def prompts_that_are_cut_or_too_long():
    long = "word " * (max_len + 10)
    error = refused(lambda: complete(long))
    assert error.body["code"] == "context_length_exceeded" and "context length" in error.body["message"]
    refused(lambda: complete("x", max_tokens=max_len + 1))
    refused(lambda: client.chat.completions.create(model=model, messages=[{"role": "user", "content": long}]))
    cut = complete(long, extra_body={"truncate_prompt_tokens": 7, "return_token_ids": True})
    assert cut.usage.prompt_tokens == 7 and cut.choices[0].prompt_token_ids == ids(long)[-7:]
    refused(lambda: complete("x", extra_body={"truncate_prompt_tokens": max_len + 1}), param="truncate_prompt_tokens")
    refused(lambda: complete("x", extra_body={"truncate_prompt_tokens": 0}), param="truncate_prompt_tokens")


def sampling_that_is_out_of_range():
    for field, value in [
        ("temperature", -0.1), ("temperature", 2.1), ("top_p", 0), ("top_p", 1.1), ("presence_penalty", 3),
        ("frequency_penalty", -3), ("n", 0), ("max_tokens", -1), ("seed", 0.5), ("suffix", "end"), ("prompt", []),
        ("prompt", {"a": 1}), ("prompt", ""), ("prompt", [999999999]),
    ]:
        refused(lambda: complete(**{field: value}), param=field)
    for field, value in [
        ("top_k", -5), ("min_p", 2), ("repetition_penalty", 0), ("min_tokens", 99), ("bad_words", ["x"]),
        ("use_beam_search", True), ("priority", "soon"), ("stop_token_ids", ["x"]),
    ]:
        refused(lambda: complete(extra_body={field: value}), param=field)
    refused(lambda: client.completions.create(model="nobody", prompt="x"), openai.NotFoundError, "model")
    hot = complete(temperature=2.0, seed=-(2**63), user="somebody", extra_body={"metadata": {"a": "b"}, "priority": 5})
    assert hot.choices[0].text == complete(temperature=2.0, seed=-(2**63)).choices[0].text


def chats():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1+1?"}]
    chat = lambda **more: client.chat.completions.create(
        model=model, messages=messages, **{"max_completion_tokens": 6, "temperature": 0.0, **more})
    done = chat(logprobs=True, top_logprobs=5)
    message = done.choices[0].message
    assert done.id.startswith("chatcmpl-") and message.role == "assistant" and len(message.content) > 0
    assert done.choices[0].finish_reason in ("length", "stop")
    assert all(len(token.top_logprobs) == 5 for token in done.choices[0].logprobs.content)
    assert chat(logprobs=True, top_logprobs=0).choices[0].logprobs.content[0].top_logprobs == []
    assert chat().choices[0].logprobs is None
    *chunks, last = chat(stream=True, stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert last.choices == [] and last.usage.total_tokens == done.usage.total_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == [done.choices[0].finish_reason]
    assert len(chat(n=3, temperature=1.0).choices) == 3
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is 1+1?"}]}]
    assert client.chat.completions.create(model=model, messages=parts, max_tokens=2).choices[0].message.content
    refused(lambda: chat(top_logprobs=21, logprobs=True), param="top_logprobs")
    refused(lambda: chat(top_logprobs=2), param="top_logprobs")
    refused(lambda: client.chat.completions.create(model=model, messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}]))


def chats_that_tell_and_continue():
    messages = [{"role": "user", "content": "Count to five."}, {"role": "assistant", "content": "One, two,"}]
    chat = lambda extra, **more: client.chat.completions.create(
        model=model, messages=messages, extra_body=extra, **{"max_tokens": 6, "temperature": 0.0, **more})
    open_end = {"continue_final_message": True, "add_generation_prompt": False}
    done = chat({"return_token_ids": True, "prompt_logprobs": 1, **open_end})
    asked = {"model": model, "messages": messages, **open_end}
    assert done.prompt_token_ids == raw("/tokenize", asked)["tokens"] and len(done.choices[0].token_ids) == 6
    assert raw("/detokenize", {"model": model, "tokens": done.prompt_token_ids})["prompt"].endswith("One, two,")
    assert len(done.prompt_logprobs) == len(done.prompt_token_ids) and done.prompt_logprobs[0] is None
    text = done.choices[0].message.content
    assert chat({"echo": True, **open_end}).choices[0].message.content == "One, two," + text
    chunks = list(chat({"return_token_ids": True, "echo": True, **open_end}, stream=True,
                       stream_options={"include_usage": True, "continuous_usage_stats": True}))
    assert chunks[0].prompt_token_ids == done.prompt_token_ids
    told = [one for chunk in chunks if chunk.choices for one in getattr(chunk.choices[0], "token_ids", None) or []]
    assert told == done.choices[0].token_ids
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "One, two," + text
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] == 6
    names = chat({"return_tokens_as_token_ids": True}, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert all(one.token.startswith("token_id:") and one.top_logprobs[0].token.startswith("token_id:") for one in names)
    refused(lambda: chat({"continue_final_message": True, "add_generation_prompt": True}), param="continue_final_message")
    refused(lambda: chat({"prompt_logprobs": 1}, stream=True), param="prompt_logprobs")


def tokenizing():
    prompt = "This is a tést"
    found = raw("/tokenize", {"model": model, "prompt": prompt})
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == max_len
    assert raw("/detokenize", {"model": model, "tokens": ids(prompt, add_special_tokens=False)})["prompt"] == prompt
    bare = complete(prompt, extra_body={"add_special_tokens": False, "return_token_ids": True}).choices[0]
    assert bare.prompt_token_ids == ids(prompt, add_special_tokens=False)


def responses():
    first = client.responses.create(
        model=model, input="My name is Ada.", instructions="Be brief.", max_output_tokens=8, temperature=0,
        metadata={"k": "v"})
    assert first.object == "response" and first.status in ("completed", "incomplete") and first.metadata == {"k": "v"}
    assert first.output[0].content[0].text == first.output_text and first.usage.output_tokens <= 8
    assert first.usage.input_tokens_details.cached_tokens >= 0
    assert client.responses.retrieve(first.id) == first
    items = [{"role": "user", "content": [{"type": "input_text", "text": "What is my name?"}]}]
    second = client.responses.create(model=model, input=items, previous_response_id=first.id, max_output_tokens=8)
    assert second.previous_response_id == first.id and second.usage.input_tokens > first.usage.output_tokens
    whole = client.responses.create(model=model, input="Hello", max_output_tokens=64, temperature=0, store=False)
    stop = {"stop": whole.output_text[4:6]}
    with client.responses.stream(model=model, input="Hello", temperature=0, extra_body=stop) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.status == "completed" and final.output_text == whole.output_text[:4]
    short = client.responses.create(model=model, input="Hello", max_output_tokens=2, temperature=0, stream=True)
    last = list(short)[-1]
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == final.output_text
    refused(lambda: client.responses.retrieve(whole.id), openai.NotFoundError)
    client.responses.delete(first.id)
    refused(lambda: client.responses.retrieve(first.id), openai.NotFoundError)
    refused(lambda: client.responses.create(model=model, input="x", background=True), param="background")
    refused(lambda: client.responses.create(model=model, input="x", reasoning={"effort": "high"}), param="reasoning")
    refused(lambda: client.responses.create(model="nobody", input="x"), openai.NotFoundError)
    refused(lambda: client.responses.create(model=model, input="word " * max_len))
    cut = client.responses.create(model=model, truncation="auto", max_output_tokens=2, input=[
        {"role": "user", "content": "word " * max_len}, {"role": "user", "content": "Hello"}])
    assert cut.usage.input_tokens < 100
    told = client.responses.create(model=model, input="Hello", max_output_tokens=4, temperature=0, top_logprobs=2,
                                   include=["message.output_text.logprobs"]).output[0].content[0]
    assert "".join(one.token for one in told.logprobs) == told.text
    assert all(len(one.top_logprobs) == 2 for one in told.logprobs)


class Place(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    indoors: bool
    floor: int = pydantic.Field(ge=0, le=9)


WHERE = {"type": "function", "name": "where", "description": "Finds a person.", "strict": True, "parameters": {
    "type": "object", "properties": {"floor": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["floor"], "additionalProperties": False}}


def responses_with_formats():
    asked = {"model": model, "input": "Where is Ada?", "temperature": 0, "max_output_tokens": 60}
    parsed = client.responses.parse(text_format=Place, **asked)
    assert isinstance(parsed.output_parsed, Place) and parsed.status == "completed"
    with client.responses.stream(text_format=Place, **asked) as stream:
        list(stream)
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    one_of = client.responses.create(extra_body={"guided_choice": ["up", "down"]}, **asked)
    assert one_of.output_text in ("up", "down")
    refused(lambda: client.responses.create(text={"format": {"type": "xml"}}, **asked), param="text.format")


def responses_with_tools():
    asked = {"model": model, "input": "Where is Ada?", "temperature": 0, "max_output_tokens": 80, "tools": [WHERE]}
    forced = {**asked, "tool_choice": {"type": "function", "name": "where"}}
    first = client.responses.create(**forced)
    call = first.output[0]
    assert (first.status, call.type, call.name) == ("completed", "function_call", "where")
    assert 0 <= json.loads(call.arguments)["floor"] <= 9 and first.tools[0].name == "where"
    with client.responses.stream(**forced) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output[0].arguments == call.arguments
    told = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(event.delta for event in told) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "on floor 3"}
    on = client.responses.create(model=model, input=[result], previous_response_id=first.id, tools=[WHERE],
                                 temperature=0, max_output_tokens=4)
    anew = client.responses.create(model=model, input=[{"role": "user", "content": "Where is Ada?"}, call.model_dump(), result],
                                   tools=[WHERE], temperature=0, max_output_tokens=4)
    assert on.usage.input_tokens == anew.usage.input_tokens > first.usage.input_tokens
    refused(lambda: client.responses.create(**{**asked, "tools": [{"type": "web_search"}]}), param="tools[0]")


def adapters():
    """Of a server with --lora-dir: its first loaded adapter is unloaded, and loaded again by its folder."""
    try:
        raw("/v1/unload_lora_adapter", {"lora_name": "nobody"})
    except urllib.error.HTTPError as error:
        if error.code == 403:
            return print("not asked: adapters, the server has no --lora-dir")
        assert error.code == 404
    own = [one for one in client.models.list().data if one.parent == model]
    if not own:
        return print("not asked: adapters, the server has none")
    name, folder = own[0].id, own[0].root
    ask = lambda: client.completions.create(model=name, prompt="Hello", max_tokens=6, temperature=0)
    changed = ask()
    assert changed.model == name and changed.choices[0].text != complete("Hello", max_tokens=6).choices[0].text
    post = lambda path, body: urllib.request.urlopen(urllib.request.Request(
        base + path, json.dumps(body).encode(), {"content-type": "application/json"})).read().decode()
    assert "removed" in post("/v1/unload_lora_adapter", {"lora_name": name})
    refused(ask, openai.NotFoundError, "model")
    assert "added" in post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder.rsplit("/", 1)[1]})
    assert ask().choices[0].text == changed.choices[0].text


only = sys.argv[2:]
for check in [
    single_completion, logprobs_of_answers, echo, prompt_logprobs, several_prompts_and_answers, forks, best_of,
    streams, stream_options, token_ids, stops, which_tokens, prompts_that_are_cut_or_too_long, sampling_that_is_out_of_range,
    chats, chats_that_tell_and_continue, tokenizing, responses, responses_with_formats, responses_with_tools, adapters,
]:
    if only and check.__name__ not in only:
        continue
    check()
    print(f"ok: {check.__name__}", flush=True)
