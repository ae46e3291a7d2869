// What the theme leaves out for readers who use a keyboard or a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  const all = (query) => document.querySelectorAll(query);
  // A box that scrolls can be reached with the keyboard.
  for (const box of all(".cell_output > .output, .pst-scrollable-table-container, .gt-box > div, .wide, math[display=block]"))
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
  // The wide button's text names it; the phone's shows a glass alone, so it keeps its label.
  for (const button of all(".search-button-field[aria-label]")) button.removeAttribute("aria-label");
  for (const summary of all("nav summary")) summary.setAttribute("aria-label", "Pages below this one");
  const sidebar = document.querySelector(".bd-sidebar-primary");
  sidebar?.setAttribute("role", "complementary");
  sidebar?.setAttribute("aria-label", "Site");
  // The corner of a table is no header.
  for (const head of all("th")) if (!head.textContent.trim()) head.replaceWith(document.createElement("td"));
});
