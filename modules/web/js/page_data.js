// What the server wrote into the document: the texts of both languages, and the checkpoints with their sizes and words.

const data = JSON.parse(document.getElementById("easel-data").textContent);

export const texts = data.texts;
export const selectedCheckpoint = data.selected;

// By its title: "name [hash]", where the hash may not be known yet.
export const checkpointOf = (title) => data.checkpoints[title.replace(/ \[[0-9a-f]+\]$/, "")];
