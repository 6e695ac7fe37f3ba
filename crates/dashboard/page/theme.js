// Runs before anything is painted, so that a chosen theme doesn't flash by.
const chosenTheme = localStorage.getItem("berth.theme");
if (chosenTheme) document.documentElement.dataset.theme = chosenTheme;
