// What the browser tells of its device: its clock, its cores, and whether the page stayed in view.

export function device() {
  return {
    cores: navigator.hardwareConcurrency ?? null,
    memory_gib: navigator.deviceMemory ?? null,
    isolated: crossOriginIsolated,
    secure: isSecureContext,
    tick_ns: nanoseconds(clockStep()),
  };
}

/** Smallest step of performance.now(), milliseconds: browsers make it coarse on purpose. */
export function clockStep() {
  let least = Infinity;
  for (let seen = 0, then = performance.now(); seen < 20; ) {
    const now = performance.now();
    if (now > then) {
      least = Math.min(least, now - then);
      then = now;
      seen++;
    }
  }
  return least;
}

export function nanoseconds(milliseconds) {
  return Math.max(1, Math.round(milliseconds * 1e6));
}

/** Notes whether the page was out of view; `begin` forgets what was before. */
export class Watch {
  hidden = document.hidden;
  #note = () => (this.hidden ||= document.hidden);

  constructor() {
    document.addEventListener("visibilitychange", this.#note);
  }

  begin() {
    this.hidden = document.hidden;
  }

  end() {
    document.removeEventListener("visibilitychange", this.#note);
  }
}
