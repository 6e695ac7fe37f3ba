"""OpenAI's own client against the gateway, whose address is the only argument."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)

names = [model.id for model in client.models.list()]
assert names == ["gemma", "smol"], names

chat = client.chat.completions.create(
    model="smol", max_tokens=8, messages=[{"role": "user", "content": "Say hello."}]
)
assert chat.choices[0].message.content, chat
assert chat.usage.completion_tokens > 0, chat

pieces = []
for chunk in client.chat.completions.create(
    model="smol", max_tokens=8, stream=True, messages=[{"role": "user", "content": "Say hello."}]
):
    pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
assert len(pieces) > 1, pieces

text = client.completions.create(model="gemma", max_tokens=8, prompt="A berth is")
assert text.choices[0].text, text
pieces = [chunk for chunk in client.completions.create(
    model="gemma", max_tokens=8, prompt="A berth is", stream=True)]
assert len(pieces) > 1, pieces

for call, error in [
    (lambda: client.completions.create(model="nope", prompt="x"), openai.NotFoundError),
    (lambda: client.completions.create(model="", prompt="x"), openai.BadRequestError),
    (lambda: client.completions.create(model="smol", prompt="x" * (40 << 20)),
     openai.APIStatusError),
]:
    try:
        call()
    except error as raised:
        assert raised.body["message"], raised.body
    else:
        raise AssertionError(f"{error} was not raised")

print("all held")
