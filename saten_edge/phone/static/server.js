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

async function checked(response) {
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Error(error ?? `the computer answered ${response.status}`);
}
