// Light or dark as chosen before, set before anything is drawn. A classic script in the head: a module would come too late and flash.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem('theme');
  } catch {
    // No storage: as the system has it.
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
