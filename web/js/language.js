/** Our sentences in the language that ComfyUI is set to: locales/<language>/main.json, which the host serves. */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { speakWith } from "./words.js"

app.registerExtension({
  name: "SAEmnesia.Language",
  async init() {
    const language = app.ui.settings.getSettingValue("Comfy.Locale") ?? "en"
    if (language === "en") return
    const all = await api.fetchApi("/i18n").then((answer) => answer.json()).catch(() => ({}))
    speakWith(all[language]?.saemnesia, all[language]?.saemnesia_answers)
  },
})
