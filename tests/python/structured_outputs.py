"""Structured output and tools by the `openai` package against a running Tarn.

    python structured_outputs.py BASE_URL [--requests 500] [--concurrency 16] [--max-tokens 512] [--only schemas|tools]

Asks over many different schemas, counts how the answers end, and validates with `jsonschema` those that ended by
themselves. Prints one line of JSON; exits with 1 where fewer than 95 % ended by themselves or any of those is not valid.
"""

import argparse
import collections
import concurrent.futures
import json
import sys
import time

import jsonschema
import openai


def obj(properties, optional=(), extra=False, **more):
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": extra, **more}


def arr(items, low=None, high=None):
    bounds = {key: value for key, value in (("minItems", low), ("maxItems", high)) if value is not None}
    return {"type": "array", "items": items, **bounds}


S, I, N, B, NULL = ({"type": kind} for kind in ("string", "integer", "number", "boolean", "null"))


def s(high=None, low=None, **more):
    bounds = {key: value for key, value in (("minLength", low), ("maxLength", high)) if value is not None}
    return {"type": "string", **bounds, **more}


def i(low=None, high=None, **more):
    bounds = {key: value for key, value in (("minimum", low), ("maximum", high)) if value is not None}
    return {"type": "integer", **bounds, **more}


def enum(*values):
    return {"enum": list(values)}


def fmt(name):
    return {"type": "string", "format": name}


def pat(pattern):
    return {"type": "string", "pattern": pattern}


ADDRESS = obj({"street": S, "zip": pat("^[0-9]{5}$"), "city": S})
FEATURE = obj({"feature": pat("^EF[0-9]{6}$"), "value": {"anyOf": [N, B, s(20), NULL]}, "unit": enum("V", "A", "W", "mm", "kg")}, optional=["unit"])

# What is asked for, and its schema. Half of the texts have no bound of their own.
SCHEMAS = [
    ("a person", obj({"name": S, "age": i(0, 120)})),
    ("a person with an address", obj({"name": S, "address": ADDRESS})),
    ("a book", obj({"title": S, "author": S, "year": i(1450, 2030), "isbn": pat("^97[89]-[0-9]{10}$")})),
    ("a city", obj({"name": S, "country": S, "population": i(0), "capital": B})),
    ("the weather today", obj({"temperature": {"type": "number", "minimum": -60, "maximum": 60}, "sky": enum("clear", "cloudy", "rain", "snow")})),
    ("a miniature circuit breaker", obj({"class": pat("^EC[0-9]{6}$"), "features": arr(FEATURE, 2, 5)})),
    ("a contactor in ETIM", obj({"etim_class": {"const": "EC000066"}, "poles": enum(1, 2, 3, 4), "rated_current": {"type": "number", "exclusiveMinimum": 0, "maximum": 630}, "coil_voltage": enum("24 V DC", "230 V AC")})),
    ("a cable", obj({"article": pat("^[A-Z]{2}-[0-9]{4}$"), "cross_section": enum(1.5, 2.5, 4, 6, 10), "cores": i(1, 7), "halogen_free": B})),
    ("a product with prices", obj({"sku": s(12, 3), "prices": arr(obj({"currency": enum("EUR", "USD", "CHF"), "amount": {"type": "number", "minimum": 0}}), 1, 3)})),
    ("a German product name", obj({"bezeichnung": s(60, 3), "größe": enum("klein", "mittel", "groß"), "verfügbar": B})),
    ("an order", obj({"id": fmt("uuid"), "date": fmt("date"), "lines": arr(obj({"sku": s(10, 2), "quantity": i(1, 999)}), 1, 4)})),
    ("a calendar event", obj({"title": S, "start": fmt("date-time"), "minutes": i(5, 480)})),
    ("a contact", obj({"name": S, "email": fmt("email"), "phone": pat("^\\+[0-9]{8,12}$")})),
    ("a server", obj({"host": fmt("hostname"), "ip": fmt("ipv4"), "port": i(1, 65535)})),
    ("a sentiment", obj({"sentiment": enum("positive", "negative", "neutral"), "confidence": {"type": "number", "minimum": 0, "maximum": 1}})),
    ("three colours", arr(enum("red", "green", "blue", "yellow", "black"), 3, 3)),
    ("a point in space", arr(N, 3, 3)),
    ("a matrix of two by two", arr(arr(i(-9, 9), 2, 2), 2, 2)),
    ("a list of two to five fruits", arr(S, 2, 5)),
    ("a list of tags", obj({"tags": arr(s(16, 2), 1, 6)})),
    ("a yes or no answer", obj({"answer": B})),
    ("a number between one and ten", i(1, 10)),
    ("a single word", s(20, 1)),
    ("nothing or a number", {"anyOf": [NULL, i(0, 100)]}),
    ("a shape", {"anyOf": [obj({"kind": {"const": "circle"}, "radius": N}), obj({"kind": {"const": "square"}, "side": N})]}),
    ("an animal", {"oneOf": [obj({"type": {"const": "cat"}, "lives": i(1, 9)}), obj({"type": {"const": "dog"}, "good": B})]}),
    ("a small family tree", {"$ref": "#/$defs/person", "$defs": {"person": obj({"name": s(20, 1), "child": {"anyOf": [NULL, obj({"name": s(20, 1)})]}})}}),
    ("a folder", {"$defs": {"file": obj({"name": s(24, 1), "bytes": i(0, 10**9)})}, **obj({"name": s(24, 1), "files": arr({"$ref": "#/$defs/file"}, 0, 3)})}),
    ("a linked list", {"$ref": "#/$defs/node", "$defs": {"node": obj({"value": i(0, 9), "next": {"anyOf": [NULL, {"$ref": "#/$defs/node"}]}})}}),
    ("a company", obj({"name": S, "founded": i(1800, 2030), "offices": arr(ADDRESS, 1, 2)})),
    ("a recipe", obj({"title": S, "minutes": i(1, 300), "ingredients": arr(obj({"name": S, "grams": i(1, 5000)}), 1, 5)})),
    ("a user with optional fields", obj({"login": pat("^[a-z][a-z0-9_]{2,15}$"), "nick": S, "admin": B}, optional=["nick", "admin"])),
    ("a setting", obj({"key": pat("^[a-z]+(\\.[a-z]+){0,3}$"), "value": {"type": ["string", "number", "boolean", "null"]}})),
    ("counts of words", {"type": "object", "properties": {"the": i(0, 99)}, "required": ["the"], "additionalProperties": i(0, 99), "maxProperties": 1}),
    ("a map from codes to names", obj({"DE": S, "FR": S}, optional=["FR"])),
    ("a colour in hexadecimal", obj({"name": s(20, 3), "hex": pat("^#[0-9a-f]{6}$")})),
    ("a version", obj({"version": pat("^[0-9]+\\.[0-9]+\\.[0-9]+$"), "stable": B})),
    ("a review of a film", obj({"film": S, "stars": i(1, 5), "summary": s(200, 10)})),
    ("a short biography", obj({"name": S, "born": i(1, 2020), "facts": arr(s(80, 5), 1, 3)})),
    ("a support ticket", obj({"subject": s(80, 5), "priority": enum("low", "medium", "high"), "steps": arr(S, 1, 3)})),
    ("an invoice", obj({"number": pat("^R-[0-9]{4}-[0-9]{3}$"), "net": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 9999}, "paid": B, "due": fmt("date")})),
    ("multiples of five", arr(i(0, 100, multipleOf=5), 2, 4)),
    ("a question with choices", obj({"question": s(120, 5), "choices": arr(s(40, 1), 2, 4), "answer": i(0, 3)})),
    ("a translation", obj({"german": S, "english": S, "日本語": s(20, 1)})),
    ("an emoji and its name", obj({"emoji": enum("🙂", "🚀", "🌧"), "name": S})),
    ("a nested configuration", obj({"server": obj({"tls": obj({"enabled": B, "versions": arr(enum("1.2", "1.3"), 1, 2)}), "threads": i(1, 64)})})),
    ("an allowed intersection", {"allOf": [obj({"a": i(0, 9), "b": B}), {"type": "object", "properties": {"a": i(3, 20), "b": B}}]}),
    ("a tuple", {"type": "array", "prefixItems": [s(10, 1), i(0, 9), B], "items": False, "minItems": 3}),
    ("a bill of materials", obj({"assembly": s(30, 2), "parts": arr(obj({"part": pat("^P[0-9]{3}$"), "count": i(1, 12), "torque": {"anyOf": [NULL, obj({"value": {"type": "number", "minimum": 0, "maximum": 200}, "unit": {"const": "Nm"}})]}}), 1, 4)})),
    ("a BMEcat article", obj({"SUPPLIER_AID": s(16, 3), "DESCRIPTION_SHORT": s(80, 5), "EAN": pat("^[0-9]{13}$"), "ORDER_UNIT": enum("C62", "MTR", "KGM")})),
    ("a sensor reading", obj({"sensor": fmt("uuid"), "at": fmt("date-time"), "celsius": {"type": "number", "minimum": -40, "maximum": 125}})),
    ("an address book entry that may be a company", {"anyOf": [obj({"person": S, "age": i(0, 120)}), obj({"company": S, "vat": pat("^DE[0-9]{9}$")})]}),
    ("a summary of electricity", obj({"summary": S, "keywords": arr(S, 1, 4)})),
    ("a plan", obj({"goal": S, "steps": arr(obj({"step": i(1, 5), "action": S}), 1, 4)})),
]


def ask(client, model, number, max_tokens):
    subject, schema = SCHEMAS[number % len(SCHEMAS)]
    answer = client.chat.completions.create(
        model=model, max_tokens=max_tokens, temperature=0.7, seed=number,
        messages=[{"role": "user", "content": f"Write JSON that describes {subject}. Keep it short."}],
        response_format={"type": "json_schema", "json_schema": {"name": f"schema_{number}", "schema": schema, "strict": True}})
    return number, answer.choices[0].finish_reason, answer.choices[0].message.content, answer.usage.completion_tokens


def schemas(client, model, args):
    started, ends, wrong, lengths, tokens = time.time(), collections.Counter(), [], collections.Counter(), 0
    with concurrent.futures.ThreadPoolExecutor(args.concurrency) as pool:
        for number, reason, text, used in pool.map(lambda n: ask(client, model, n, args.max_tokens), range(args.requests)):
            subject, schema = SCHEMAS[number % len(SCHEMAS)]
            ends[reason] += 1
            tokens += used
            if reason != "stop":
                lengths[subject] += 1
                if args.verbose:
                    print(f"{reason}: {subject}: {text[:100]!r} .. {text[-100:]!r}", file=sys.stderr)
                continue
            try:
                jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
            except (ValueError, jsonschema.ValidationError) as error:
                wrong.append(f"{subject}: {text!r}: {str(error).splitlines()[0]}")
    report = {"requests": args.requests, "schemas": len({json.dumps(schema) for _, schema in SCHEMAS}), "ends": ends, "invalid": wrong,
              "not_ended": lengths, "completion_tokens": tokens, "seconds": round(time.time() - started, 1)}
    print(json.dumps(report, ensure_ascii=False))
    return ends["stop"] >= 0.95 * args.requests and not wrong


WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city.", "parameters": obj(
    {"city": s(30, 1), "unit": enum("celsius", "fahrenheit")}, optional=["unit"])}}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds two numbers.", "parameters": {
    "$defs": {"digit": i(0, 99)}, **obj({"a": {"$ref": "#/$defs/digit"}, "b": {"$ref": "#/$defs/digit"}})}}}


def check_call(call, tools):
    function = next(tool["function"] for tool in tools if tool["function"]["name"] == call["name"])
    jsonschema.validate(json.loads(call["arguments"]), function["parameters"], cls=jsonschema.Draft202012Validator)


def tools(client, model):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    named = {"type": "function", "function": {"name": "add"}}
    for choice, functions in [("required", [WEATHER, ADD]), (named, [WEATHER, ADD]), ("required", [WEATHER])]:
        ask = {"model": model, "messages": messages, "tools": functions, "tool_choice": choice, "max_tokens": 256, "seed": 1, "temperature": 0.7, "parallel_tool_calls": False}
        whole = client.chat.completions.create(**ask).choices[0]
        assert whole.finish_reason == "tool_calls" and len(whole.message.tool_calls) == 1, whole
        call = whole.message.tool_calls[0]
        assert call.id and call.type == "function"
        check_call({"name": call.function.name, "arguments": call.function.arguments}, functions)
        assert choice != named or call.function.name == "add"
        streamed, reasons, content = {}, [], ""
        for chunk in client.chat.completions.create(**ask, stream=True):
            for one in chunk.choices:
                reasons.append(one.finish_reason)
                content += one.delta.content or ""
                for part in one.delta.tool_calls or []:
                    entry = streamed.setdefault(part.index, {"name": "", "arguments": "", "id": "", "pieces": 0})
                    entry["id"] += part.id or ""
                    entry["name"] += part.function.name or ""
                    entry["arguments"] += part.function.arguments or ""
                    entry["pieces"] += 1
        assert reasons[-1] == "tool_calls" and content == "" and list(streamed) == [0], (reasons, content, streamed)
        assert streamed[0]["id"] and streamed[0]["pieces"] > 2
        assert (streamed[0]["name"], streamed[0]["arguments"]) == (call.function.name, call.function.arguments)
        # A second turn with the call and its result.
        turn = messages + [whole.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "17 degrees"}]
        answer = client.chat.completions.create(model=model, messages=turn, tools=functions, max_tokens=24)
        assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    free = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], max_tokens=64, seed=3)
    assert free.choices[0].message.content or free.choices[0].message.tool_calls
    strict = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in (WEATHER, ADD)]
    called = 0
    for seed in range(8):
        message = client.chat.completions.create(model=model, messages=messages, tools=strict, max_tokens=200, seed=seed, temperature=0.7).choices[0].message
        called += len(message.tool_calls or [])
        for call in message.tool_calls or []:
            check_call({"name": call.function.name, "arguments": call.function.arguments}, strict)
    print(f"calls of strict functions where the model was free: {called}", file=sys.stderr)
    none = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=8)
    assert none.choices[0].message.tool_calls is None


def forms(client, model):
    def text(**extra):
        return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Answer."}], max_tokens=256, seed=5, **extra).choices[0]

    assert text(extra_body={"guided_choice": ["yes", "no"]}).message.content in ("yes", "no")
    assert text(extra_body={"structured_outputs": {"regex": "[a-f]{4}-\\d{2}"}}).message.content[4] == "-"
    assert text(extra_body={"guided_grammar": "root ::= \"x\" [0-9] \"!\""}).message.content.endswith("!")
    many = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Pick."}], n=3, max_tokens=8, extra_body={"guided_choice": ["a", "b", "c"]})
    assert len(many.choices) == 3 and all(one.message.content in "abc" for one in many.choices)
    plain = client.completions.create(model=model, prompt="A number: ", max_tokens=8, extra_body={"guided_regex": "[0-9]{3}"})
    assert plain.choices[0].text.isdigit() and plain.choices[0].finish_reason == "stop"
    for extra in [{"guided_regex": "("}, {"guided_json": {"type": "array", "uniqueItems": True}}, {"guided_choice": []}, {"guided_json": "{"},
                  {"guided_choice": ["a"], "guided_regex": "a"}, {"structured_outputs": {"structural_tag": "x"}}, {"guided_whitespace_pattern": " "}]:
        try:
            text(extra_body=extra)
        except openai.BadRequestError as error:
            assert error.body["param"], error
        else:
            raise AssertionError(f"{extra} must be refused")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--only", choices=["schemas", "tools"])
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.url + "/v1", api_key="none", timeout=3600, max_retries=20)
    model = client.models.list().data[0].id
    if args.only != "schemas":
        forms(client, model)
        tools(client, model)
        print("forms and tools: passed", file=sys.stderr)
    good = args.only == "tools" or schemas(client, model, args)
    sys.exit(0 if good else 1)


main()
