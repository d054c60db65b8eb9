// The computer that serves this page: asking it, and telling it.

export class Server {
  #token;

  constructor(token) {
    this.#token = token;
  }

  async get(path) {
    return checked(await fetch(path, { headers: { "X-Saten-Token": this.#token }, cache: "no-store" }));
  }

  async json(path) {
    return (await this.get(path)).json();
  }

  async post(path, value) {
    const headers = { "X-Saten-Token": this.#token, "Content-Type": "application/json" };
    return (await checked(await fetch(path, { method: "POST", headers, body: JSON.stringify(value) }))).json();
  }
}

/** Posts of one run, kept until they are taken; what the computer answers goes to `onResult(path, answer)`. */
export class Outbox {
  #server;
  #run;
  #onResult;
  #posts = [];

  constructor(server, run, onResult) {
    this.#server = server;
    this.#run = run;
    this.#onResult = onResult;
  }

  add(path, value) {
    this.#posts.push({ path, value: { run: this.#run, ...value } });
  }

  /** Post everything that was not taken yet; can be called again when the computer could not be reached. */
  async send() {
    while (this.#posts.length) {
      const { path, value } = this.#posts[0];
      const answer = await this.#server.post(`/api/${path}`, value);
      this.#posts.shift();
      this.#onResult(path, answer);
    }
  }

  /** `send`, unless the computer cannot be reached now; what it refuses is an error. */
  async trySend() {
    try {
      await this.send();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch says so when there is no connection
    }
  }
}

async function checked(response) {
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Error(error ?? `the computer answered ${response.status}`);
}
