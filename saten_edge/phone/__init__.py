"""Measure bundles on any phone or tablet through its browser.

    job = make_job(["dense-int8", "saten-int8"], plan, data=Path("held_out.jsonl"))
    here = Address("192.168.1.5")
    serve(job, partial(Run, job), Path("phone"), here, opened=show_link, done=print, once=True, talk=Talk())

A small web server hands one page to the phone; the page downloads the bundles, runs them with
onnxruntime-web and posts raw times and raw outputs back. Everything that is computed from them is
computed here, by `saten_runtime`, into the same bench.json and eval.json as on any other device.

    job         what the page is asked to do
    questions   inputs that travel as token ids, and the scores of what came back
    schema      what may be posted
    run         one phone's turn: its token, what it posted, its files
    received    what every turn has in common
    prices      another job: the times that prices of forms are fitted to; only imported where they are
    app         the routes, and who may call them
    connection  caps and deadlines below the routes
    server      binding, the QR code, the end
    ort         the files of onnxruntime-web
    static/     the page: plain HTML, CSS and JavaScript, no build step
"""

from __future__ import annotations

from saten_edge.phone.job import Job, make_job
from saten_edge.phone.run import Run
from saten_edge.phone.server import Address, lan_address, serve, show_link

__all__ = [
    "Address",
    "Job",
    "Run",
    "lan_address",
    "make_job",
    "serve",
    "show_link",
]
