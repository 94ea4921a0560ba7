// Shows the API's description, and asks for a key where the gateway wants one.
"use strict";
(() => {
  const KEY = "tidegate.key";
  const { viewer, document: address } = document.body.dataset;
  const ask = document.getElementById("ask");
  const told = document.getElementById("told");
  const field = document.getElementById("key");
  const fault = document.getElementById("fault");

  // Session storage ends with the tab. Where it is switched off, the key is asked for each time.
  function kept() {
    try { return sessionStorage.getItem(KEY) || ""; } catch { return ""; }
  }

  function keep(key) {
    try {
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
    } catch { /* it is not kept */ }
  }

  function show(description, key) {
    ask.hidden = fault.hidden = true;
    if (viewer === "redoc") {
      Redoc.init(description, {}, document.getElementById("viewer"));
      return;
    }
    const ui = SwaggerUIBundle({
      spec: description,
      dom_id: "#viewer",
      deepLinking: true,
      layout: "BaseLayout",
      presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
      onComplete: () => { if (key) ui.preauthorizeApiKey("key", key); },
    });
  }

  function refuse(text) {
    fault.textContent = text;
    fault.hidden = false;
  }

  async function open(key) {
    let answer;
    try {
      answer = await fetch(address, {
        headers: key ? { Authorization: `Bearer ${key}` } : {},
        cache: "no-store",
        credentials: "omit",
      });
    } catch {
      refuse("The gateway cannot be reached: load this page again.");
      return;
    }
    if (answer.ok) {
      keep(key);
      show(await answer.json(), key);
    } else if (answer.status === 401 || answer.status === 403) {
      keep("");
      if (key) told.textContent = "This key was refused: enter another one.";
      ask.hidden = false;
      field.focus();
    } else {
      refuse(`The gateway answered ${answer.status}: load this page again.`);
    }
  }

  ask.addEventListener("submit", (event) => {
    event.preventDefault();
    const key = field.value.trim();
    field.value = "";
    if (key) open(key);
  });
  open(kept());
})();
