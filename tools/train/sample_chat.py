"""sample_chat.py - the chat answers that the model card shows: questions and answers chosen by a seed, not by hand.

Run:     python tools/train/sample_chat.py MODEL.gguf chat_heldout.jsonl      (build/impetus must be built)
Prints:  Markdown: ten of the general questions below and ten held-out records, each with the answer at temperature
         0.3 and the seed of its number.
"""
import json
import random
import subprocess
import sys

GENERAL = """Hello! | Who are you? | How are you today? | What is your favourite colour? | Tell me a joke. |
Tell me a story about a dragon. | Tell me a story about a little girl and a bear. | What can you do? | I am bored. |
What is the weather like? | Do you like music? | What is a horse? | Why is the sky blue? | Give me some good advice. |
What should I eat for dinner? | What is the meaning of "brave"? | Can you help me? | I love you. | Good night! |
Write two sentences about the sea. | What is plain language? | How do I write a good web page? |
What is the largest planet? | If I have 3 apples and buy 2 more, how many do I have? | Where do you live? |
Thank you for your help. | Tell me the fable of "The Fox and the Grapes". | What makes a good friend? |
Do you have a family? | What is an accessible website?"""


def main(model, held):
    rng = random.Random(20261122)
    asked = rng.sample([q.strip() for q in GENERAL.split("|")], 10)
    records = [json.loads(x) for x in open(held)]
    records = [r["instruction"] for r in records if not r["context"] and len(r["instruction"]) < 200]
    asked += rng.sample(records, 10)
    for i, q in enumerate(asked):
        r = subprocess.run(["build/impetus", "run", model, q, "-n", "200", "--temp", "0.3", "--seed", str(i), "--json"],
                           capture_output=True, text=True, check=True)
        j = json.loads(r.stdout)
        text = j.get("text") or j.get("content") or str(j)
        print(f"{i + 1}. **{q.strip()}**  \n   {text.strip().replace(chr(10), chr(10) + '   ')}\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
