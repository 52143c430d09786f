"""Tables as Markdown, aligned so that they can be read on a terminal as they are."""


def number(value, digits=3):
    """A number with so many significant digits and no exponent; a dash for what was not measured."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if whole:
        return f"{value:,.{max(0, digits - whole)}f}"
    return f"{value:#.{digits}g}"


def markdown(headings, rows):
    """A Markdown table; cells are strings, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]

    def line(cells):
        padded = [cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(cells)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([line(headings), line(rule), *map(line, rows)])
