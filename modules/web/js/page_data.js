// What the server wrote into the document: the texts of both languages, the checkpoints with their sizes and words, where
// each box of the forms is, and the settings that scripts read.

const data = JSON.parse(document.getElementById("easel-data").textContent);

export const texts = data.texts;
export const selectedCheckpoint = data.selected;
export const forms = data.forms; // tab → field → {id, kind, value}
export const settings = data.settings;

// By its title: "name [hash]", where the hash may not be known yet.
export const checkpointOf = (title) => data.checkpoints[title.replace(/ \[[0-9a-f]+\]$/, "")];
