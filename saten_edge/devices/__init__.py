"""Boards and phones: reach them, bring them what they lack, measure there, bring the results home.

    devices = parse_devices(["ssh://pi@raspberrypi"])
    results = run_jobs(devices, bench_job(bundles, plan, None), output=None, overwrite=False, talk=Talk())

`transports` knows how to reach which device, `agent` is the program that runs there, `channel` and `board`
talk to it, `wheels` and `deploy` bring what it lacks, `jobs` measure.
"""
