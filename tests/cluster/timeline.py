"""What happens while the load rises and falls, once a second: a table, and then a plot of it.
In: the API, Redis (as load.py). Out, record CSV STOP: lines of COLUMNS until the file STOP exists; judge CSV: what happened, a line
each; plot CSV SVG: three panels."""
import csv
import http.client
import os
import sys
import time

COLUMNS = ["second", "arrivals", "unfinished", "tokens", "budget", "llm_wanted", "encoder_wanted", "llm_desired", "encoder_desired",
           "llm_pods", "encoder_pods"]


def tier(api, name):
    """-> (replicas the Deployment asks for, pods that are ready)."""
    status = api.get(f"/apis/apps/v1/namespaces/tokenflex/deployments/tokenflex-{name}")
    return status["spec"]["replicas"], status["status"].get("readyReplicas", 0)


def record(out, stop):
    from api import Api
    from load import QUEUE, insistent
    api, connection, begin, last, tokens = Api(), None, time.monotonic(), "$", []
    with open(out, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        connection, newest = insistent(connection, "XREVRANGE", QUEUE + "results", "+", "-", "COUNT", 1)
        last = newest[0][0].decode() if newest else "0-0"
        for second in range(24 * 3600):
            if os.path.exists(stop):
                return
            connection, found = insistent(connection, "XRANGE", QUEUE + "results", "(" + last, "+")
            now = time.monotonic()
            for name, fields in found:
                last = name.decode()
                tokens.append((now, int(dict(zip(fields[::2], fields[1::2]))[b"vision_tokens"])))
            tokens = [(at, n) for at, n in tokens if at > now - 5]
            connection, fields = insistent(connection, "HGETALL", QUEUE + "load")
            load = {a.decode(): b.decode() for a, b in zip(fields[::2], fields[1::2])}
            try:
                llm, encoder = tier(api, "llm"), tier(api, "encoder")
            except (OSError, http.client.HTTPException):
                llm = encoder = ("", "")
            mean = round(sum(n for _, n in tokens) / len(tokens), 1) if tokens else ""
            table.writerow([round(now - begin, 1), load.get("arrivals_per_s"), load.get("unfinished"), mean, load.get("budget"),
                            load.get("decode_wanted"), load.get("encode_wanted"), llm[0], encoder[0], llm[1], encoder[1]])
            file.flush()
            time.sleep(max(0, begin + second + 1 - time.monotonic()))


def judge(source):
    """What must have happened, a line each; `ok` first where it did. Order and direction are judged, never times."""
    with open(source, newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["llm_pods"] != ""]
    second = [float(r["second"]) for r in rows]
    loaded = [i for i, r in enumerate(rows) if float(r["unfinished"] or 0) > 0]
    last = loaded[-1] if loaded else 0

    def first(column, above):
        return next((second[i] for i, r in enumerate(rows) if int(r[column]) > above), None)

    def tokens(begin, end):
        found = [float(r["tokens"]) for r in rows[begin:end] if r["tokens"]]
        return found or [0]

    fall = next((i for i in range(len(rows)) if rows[i]["tokens"] and float(rows[i]["tokens"]) < 200), None)
    more_llms, more_encoders = first("llm_desired", 1), first("encoder_desired", 1)
    lowest = min(range(fall or 0, last + 1), key=lambda i: float(rows[i]["tokens"] or 256))
    back = max(tokens(lowest, last + 1))
    verdicts = [
        (fall is not None, f"tokens fall under load (to {min(tokens(0, last + 1)):g} on average over 5 s)"),
        (more_llms is not None and first("llm_pods", 1) is not None, f"the autoscaler adds LLM pods (most: {max(int(r['llm_pods']) for r in rows)})"),
        (more_encoders is not None and first("encoder_pods", 1) is not None,
         f"and encoders (most: {max(int(r['encoder_pods']) for r in rows)})"),
        (None not in (more_llms, more_encoders) and more_llms <= more_encoders, "LLM pods are asked for first"),
        (fall is not None and more_llms is not None and second[fall] <= (first("llm_pods", 1) or 0), "tokens fall before the first new pod is ready"),
        (back >= 224 and back > min(tokens(0, last + 1)), f"tokens return while the load goes on (to {back:g})"),
        (bool(rows) and rows[-1]["llm_pods"] == "1" and rows[-1]["encoder_pods"] == "1", "at the end there is one pod of each"),
    ]
    for holds, text in verdicts:
        print("ok " + text if holds else text)


class Panel:
    """One picture above the other: its own height, one or two scales, lines."""
    WIDTH, HEIGHT, LEFT, RIGHT = 860, 150, 56, 56

    def __init__(self, rows, top, end):
        self.rows, self.top, self.end, self.parts = rows, top, end, []

    def x(self, second):
        return self.LEFT + (self.WIDTH - self.LEFT - self.RIGHT) * second / self.end

    def scale(self, limit, name, right=False):
        """Names and ticks of an axis, with lines of the grid at the left one's."""
        at = self.WIDTH - self.RIGHT + 6 if right else self.LEFT - 6
        for i in range(5 if limit % 4 == 0 else int(limit) + 1):
            value = limit * i / (4 if limit % 4 == 0 else limit)
            y = self.top + self.HEIGHT * (1 - value / limit)
            if not right:
                self.parts.append(f'<line class="g" x1="{self.LEFT}" x2="{self.WIDTH - self.RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text x="{at}" y="{y + 4:.1f}" text-anchor="{"start" if right else "end"}">{value:g}</text>')
        self.parts.append(f'<text x="{self.WIDTH - self.RIGHT + 6 if right else 4}" y="{self.top - 10}" class="n">{name}</text>')

    def line(self, column, limit, kind, steps=False):
        points, before = [], None
        for row in self.rows:
            if row[column] == "":
                continue
            x, y = self.x(float(row["second"])), self.top + self.HEIGHT * (1 - min(float(row[column]) / limit, 1))
            if steps and before is not None:
                points.append(f"{x:.1f},{before:.1f}")
            if not steps or y != before:
                points.append(f"{x:.1f},{y:.1f}")
            before = y
        if steps and before is not None:
            points.append(f"{self.x(float(self.rows[-1]['second'])):.1f},{before:.1f}")
        self.parts.append(f'<polyline class="{kind}" points="{" ".join(points)}"/>')

    def key(self, entries):
        x = 230
        for kind, text in entries:
            self.parts.append(f'<line class="{kind}" x1="{x}" x2="{x + 22}" y1="{self.top - 14}" y2="{self.top - 14}"/>'
                              f'<text x="{x + 28}" y="{self.top - 10}">{text}</text>')
            x += 50 + 7 * len(text)


STYLE = """text{font:12px sans-serif;fill:#333}.n{font-weight:bold}.g{stroke:#e3e3e3}polyline,line{fill:none}
.a,.b,.c,.d{stroke-width:2}.a{stroke:#1f6fb4}.b{stroke:#c8571b}.c{stroke:#1f6fb4;stroke-width:1;stroke-dasharray:4 3}
.d{stroke:#c8571b;stroke-width:1;stroke-dasharray:4 3}
@media(prefers-color-scheme:dark){svg{background:#16181c}text{fill:#ddd}.g{stroke:#3a3d44}.a,.c{stroke:#6fb1e8}.b,.d{stroke:#f0975c}}"""


def nice(value, unit):
    return max(unit, -(-value // unit) * unit)


def plot(source, out):
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: max(1, len(rows) // 450)] + rows[-1:] # finer than the picture's pixels is of no use
    most = {c: max((float(r[c]) for r in rows if r[c] != ""), default=0) for c in COLUMNS}
    end = most["second"] or 1
    first, second, third = (Panel(rows, 40 + i * 210, end) for i in range(3))
    rate, queue = nice(most["arrivals"], 4), nice(most["unfinished"], 20)
    first.scale(rate, "jobs/s")
    first.scale(queue, "jobs", right=True)
    first.line("unfinished", queue, "b")
    first.line("arrivals", rate, "a")
    first.key([("a", "arrivals, smoothed"), ("b", "unfinished (right)")])
    second.scale(256, "vision tokens")
    second.line("tokens", 256, "a")
    second.key([("a", "mean of the results of 5 s")])
    pods = nice(max(most[c] for c in ("llm_pods", "encoder_pods", "llm_desired", "encoder_desired")), 1)
    third.scale(pods, "pods")
    for column, kind in (("llm_desired", "c"), ("encoder_desired", "d"), ("llm_pods", "a"), ("encoder_pods", "b")):
        third.line(column, pods, kind, steps=True)
    third.key([("a", "LLM, ready"), ("c", "LLM, asked for"), ("b", "encoder, ready"), ("d", "encoder, asked for")])
    height = 40 + 3 * 210
    ticks = "".join(f'<text x="{first.x(s):.1f}" y="{height - 14}" text-anchor="middle">{s // 60} min</text>'
                    for s in range(0, int(end) + 1, max(60, 60 * round(end / 600))))
    body = "\n".join(part for panel in (first, second, third) for part in panel.parts)
    with open(out, "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" width="860" height="{height}">\n'
                   f"<style>{STYLE}</style>\n{body}\n{ticks}\n</svg>\n")


if __name__ == "__main__":
    {"record": record, "judge": judge, "plot": plot}[sys.argv[1]](*sys.argv[2:])
