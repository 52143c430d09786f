def vocabulary(folder):
    """The characters, by the number of their token."""
    return json.loads((pathlib.Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))


def encode(text, characters):
    """The tokens of a text."""
    number = {character: token for token, character in enumerate(characters)}
    unknown = sorted(set(text) - number.keys())
    if unknown:
        raise ValueError(f"the model does not know {unknown}")
    return torch.tensor([number[character] for character in text])


@torch.no_grad()
def evaluate(model, tokens):
    """Mean cross-entropy in nats over the consecutive windows of CONTEXT tokens, as `moec eval RUN --split all`.

    Full batches of BATCH windows go through the model together, the rest one by one: where a router compares tokens, the
    others of the batch matter.
    """
    model.eval()
    windows = (len(tokens) - 1) // CONTEXT
    if windows == 0:
        raise ValueError(f"the text is shorter than {CONTEXT + 1} characters")
    x = tokens[: windows * CONTEXT].view(windows, CONTEXT)
    y = tokens[1 : windows * CONTEXT + 1].view(windows, CONTEXT)
    total, full = 0.0, windows - windows % BATCH
    for w in range(0, full, BATCH):
        total += model(x[w : w + BATCH], y[w : w + BATCH])[1].item() * BATCH
    for w in range(full, windows):
        total += {alone}.item()
    return total / windows


@torch.no_grad()
def generate(model, tokens, length, temperature=0.0):
    """Continues a text token by token, each from the last CONTEXT tokens; temperature 0 takes the most probable one."""
    model.eval()
    tokens = tokens.tolist()
    for _ in range(length):
        window = tokens[-CONTEXT:]
        # What is behind the text is not seen by a causal model; another one sees the same as in moec.
        padded = F.pad(torch.tensor([window]), (0, CONTEXT - len(window)))
        scores = {next}[0][0, len(window) - 1]
        if temperature > 0:
            tokens.append(torch.multinomial((scores / temperature).softmax(-1), 1).item())
        else:
            tokens.append((scores == scores.max()).nonzero()[0].item())
    return tokens


def main():
    parser = argparse.ArgumentParser(description="Evaluates the model, or has it write.")
    parser.add_argument("--data", help="a text, of which the mean cross-entropy in nats is printed")
    parser.add_argument("--prompt", help="what is continued")
    parser.add_argument("--length", type=int, default=500, help="characters to write")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable character")
    arguments = parser.parse_args()
    if arguments.data is None and arguments.prompt is None:
        parser.error("give --data or --prompt")
    folder = pathlib.Path(__file__).resolve().parent
    model, characters = Model.load(folder), vocabulary(folder)
    if arguments.data is not None:
        text = pathlib.Path(arguments.data).read_bytes().decode("utf-8")
        print(evaluate(model, encode(text, characters)))
    if arguments.prompt is not None:
        # An empty prompt begins as after a line break.
        prompt = arguments.prompt or ("\n" if "\n" in characters else characters[0])
        tokens = generate(model, encode(prompt, characters), arguments.length, arguments.temperature)
        print(arguments.prompt + "".join(characters[token] for token in tokens[len(prompt) :]))


if __name__ == "__main__":
    main()
