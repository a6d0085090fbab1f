// Runs before the first paint, so that a theme chosen by hand does not flash.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("gemma.theme") ?? '"system"');
} catch {
  document.documentElement.dataset.theme = "system";
}
