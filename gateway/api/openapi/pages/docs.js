// Shows the OpenAPI document, and asks for a key where the gateway requires one.
"use strict";
(() => {
  const KEY = "tidegate.key";
  const { viewer, document: address } = document.body.dataset;
  const keyForm = document.getElementById("key-form");
  const prompt = document.getElementById("prompt");
  const field = document.getElementById("key");
  const fault = document.getElementById("fault");

  // Session storage ends with the tab. Where it is disabled, we ask for the key each time.
  function storedKey() {
    try { return sessionStorage.getItem(KEY) || ""; } catch { return ""; }
  }

  function storeKey(key) {
    try {
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
    } catch { /* not stored */ }
  }

  function show(description, key) {
    keyForm.hidden = fault.hidden = true;
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

  function showFault(text) {
    fault.textContent = text;
    fault.hidden = false;
  }

  async function open(key) {
    let response;
    try {
      response = await fetch(address, {
        headers: key ? { Authorization: `Bearer ${key}` } : {},
        cache: "no-store",
        credentials: "omit",
      });
    } catch {
      showFault("The gateway cannot be reached: reload this page.");
      return;
    }
    if (response.ok) {
      storeKey(key);
      show(await response.json(), key);
    } else if (response.status === 401 || response.status === 403) {
      storeKey("");
      if (key) prompt.textContent = "This key was refused: enter another one.";
      keyForm.hidden = false;
      field.focus();
    } else {
      showFault(`The gateway answered ${response.status}: reload this page.`);
    }
  }

  keyForm.addEventListener("submit", (event) => {
    event.preventDefault();
    const key = field.value.trim();
    field.value = "";
    if (key) open(key);
  });
  open(storedKey());
})();
