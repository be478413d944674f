"use strict";
// The page of `medkit view`: one image.
(() => {
  const blockOf = (id) => JSON.parse(document.getElementById(id).textContent);
  document.getElementById("title").textContent = document.title;
  document.getElementById("licence").textContent = blockOf("niivue").licence;
  medkitViewer.show(document.getElementById("viewer"), blockOf("volumes"), document.title);
})();
