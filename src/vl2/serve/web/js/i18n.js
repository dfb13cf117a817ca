// The page's words in English and Chinese.

const en = {
  skip: "Skip to the question", tools: "Page", new: "New", export: "Export", pictures: "Pictures",
  headline: "Ask about a picture.",
  lead: "Answers point at what they mean: every box in the text is a box on your picture.",
  pick: "Choose pictures or a PDF", dropHint: "or drop them here, or paste a screenshot",
  examples: "Or begin with one of these", view: "View", zoomIn: "Zoom in", zoomOut: "Zoom out",
  fit: "Whole picture", select: "Select a part of the picture",
  dragHint: "Drag over the picture to ask about a part.",
  reading: "How the model reads it", conversation: "Conversation", ideas: "Suggested questions",
  question: "Question", placeholder: "Ask about the picture", mode: "Kind of answer",
  modeText: "Answer", modeBoxes: "With boxes", modeFind: "Find", ask: "Ask", stop: "Stop",
  history: "With the conversation so far",
  fine: "The model can be wrong, also where it is sure.",
  scope: "{model} is a small model for a first try: it sees pictures at {n} × {n} pixels and knows drawn shapes, colours and a few letters.",
  keyTitle: "This server needs a key", keyWhy: "It is kept in this tab until you close it.",
  keyWrong: "The key was not accepted. Try another one.", key: "API key", cancel: "Cancel", ok: "OK",
  pagesTitle: "Which pages?", pages: "Pages, such as 1-3,5",
  theme: "Theme: {theme}", light: "light", dark: "dark", auto: "as the system",
  models: "Model", ready: "ready", notReady: "not ready", loading: "Loading",
  remove: "Remove {name}", show: "Show {name}", part: "part of {name}", pageOf: "{name}, page {page}",
  released: "Released layout", content: "Content layout",
  used: "used for the next question", tilesWord: "{wide} × {high} tiles + overview",
  oneTile: "one view", tokens: "{n} tokens", readAt: "read at {w} × {h}", grid: "Show the tiles",
  gridNone: "Hide", gridShow: "Show",
  edit: "Edit and ask again", again: "Ask again", copy: "Copy", copied: "Copied",
  thinking: "Looking", stopped: "Stopped.", cut: "Cut off at the limit of tokens.",
  guard: "The repetition guard turned this answer.",
  unreachable: "The server cannot be reached. Check that it runs, then ask again.",
  broken: "The connection ended before the answer did. Ask again.",
  noPicture: "{name} cannot be shown by this browser: save it as PNG or JPEG.",
  wrongKind: "{name} is neither a picture nor a PDF.",
  tooLarge: "The conversation is too large to survive a reload of this tab.",
  done: "The answer is complete.", doneBoxes: "The answer is complete. Boxes: {n}.",
  outTokens: "{n} tokens", firstWord: "first word after {s} s", inSeconds: "{s} s",
  speed: "{n} tokens/s", promptTokens: "prompt: {n} tokens, {pictures} of them from pictures",
  sure: "{p} % sure", insteadOf: "also considered: {list}", boxed: "{label}, {p} % sure",
  whatIsThis: "What is this?", readThis: "Read the text.", describeThis: "Describe the picture.",
  regionHelp: "Part of the picture. Arrow keys move it, with Shift they resize it; Enter asks, Escape ends.",
  exported: "Saved as one file.", cleared: "The conversation is cleared.", undo: "Undo",
  exportTitle: "Answers about pictures", exportNote: "Made with vl2. Hover over a phrase to see its box.",
  traceSwitch: "Glass box: the next answer shows where it looked and which experts it used, and takes longer",
  glass: "Glass box", lookedWhere: "Where each word looked", tokensOf: "Tokens of the answer",
  overview: "Overview", mosaic: "Tiles", tokensScale: "of its attention went to the pictures",
  tokenLabel: "Token {at} of {all}: {name}, {p} of its attention to the pictures",
  spaceToken: "space", endToken: "end of the answer", markToken: "mark",
  tokenLooked: "{name} gave {p} of its attention to the pictures, the rest to text.",
  mostAt: "Most at {x} from the left, {y} from the top.", mostInPadding: "Most in the padding around the picture.",
  experts: "Experts", noExperts: "This model has no experts.", allTiles: "All", tileNamed: "Tile {name}",
  whichTile: "Picture tokens of", pictureTokens: "picture tokens", answerTokens: "answer tokens",
  expertsScale: "of the tokens used an expert; even use would be {even}",
  matrix: "{what}: use of {experts} experts in {layers} layers. Arrow keys read the cells.",
  layerExpert: "Layer {layer}, expert {expert}", usedBy: "{p} of {what} ({n})",
  readout: "Layers down, experts across. Framed: what the chosen token used.",
  here: "here {p}", asTable: "As a table", layer: "Layer", thisToken: "this token",
  ideaDescribe: "Describe the picture.", ideaBoxes: "What is in this picture?",
  ideaRead: "Read all of the text.", ideaTable: "Write the table as Markdown.",
  ideaSum: "Summarise this page.", ideaChart: "Which values does the chart show?",
  ideaTrend: "What does the chart tell?", ideaScreen: "What can I do on this screen?",
  ideaButtons: "the buttons", ideaCount: "How many objects are there?", ideaPeople: "the people",
  ideaTitle: "the title",
};

const zh = {
  skip: "跳到提问框", tools: "页面", new: "新对话", export: "导出", pictures: "图片",
  headline: "就图片提问。", lead: "回答会指出它所说的地方：文字里的每个框都画在图片上。",
  pick: "选择图片或 PDF", dropHint: "也可以拖到这里，或粘贴截图",
  examples: "或者从这些例子开始", view: "视图", zoomIn: "放大", zoomOut: "缩小",
  fit: "整张图片", select: "选择图片的一部分", dragHint: "在图片上拖动，可以就局部提问。",
  reading: "模型如何读这张图", conversation: "对话", ideas: "推荐问题",
  question: "问题", placeholder: "就图片提问", mode: "回答方式",
  modeText: "回答", modeBoxes: "带框回答", modeFind: "定位", ask: "提问", stop: "停止",
  history: "连同之前的对话",
  fine: "模型可能出错，即使它很有把握。",
  scope: "{model} 是供试用的小模型：它以 {n} × {n} 像素看图，只认识画出的图形、颜色和少量字母。",
  keyTitle: "此服务器需要密钥", keyWhy: "密钥只保存在此标签页中，关闭即失效。",
  keyWrong: "密钥未被接受，请换一个。", key: "API 密钥", cancel: "取消", ok: "确定",
  pagesTitle: "读哪些页？", pages: "页码，例如 1-3,5",
  theme: "主题：{theme}", light: "浅色", dark: "深色", auto: "跟随系统",
  models: "模型", ready: "就绪", notReady: "未就绪", loading: "正在载入",
  remove: "移除 {name}", show: "查看 {name}", part: "{name} 的局部", pageOf: "{name} 第 {page} 页",
  released: "原版切分", content: "按内容切分",
  used: "用于下一个问题", tilesWord: "{wide} × {high} 块 + 全图", oneTile: "一张全图",
  tokens: "{n} 个词元", readAt: "按 {w} × {h} 读取", grid: "显示切块",
  gridNone: "隐藏", gridShow: "显示",
  edit: "修改后重新提问", again: "重新回答", copy: "复制", copied: "已复制",
  thinking: "正在看图", stopped: "已停止。", cut: "达到词元上限，回答被截断。",
  guard: "重复保护改变了这个回答。",
  unreachable: "无法连接服务器。请确认它在运行，然后重试。",
  broken: "回答结束前连接中断，请重新提问。",
  noPicture: "浏览器无法显示 {name}：请存为 PNG 或 JPEG。",
  wrongKind: "{name} 既不是图片也不是 PDF。",
  tooLarge: "对话太大，刷新此标签页后将无法保留。",
  done: "回答完毕。", doneBoxes: "回答完毕，共 {n} 个框。",
  outTokens: "{n} 个词元", firstWord: "首字 {s} 秒", inSeconds: "{s} 秒",
  speed: "每秒 {n} 个词元", promptTokens: "提示 {n} 个词元，其中图片 {pictures} 个",
  sure: "把握 {p}%", insteadOf: "其他可能：{list}", boxed: "{label}，把握 {p}%",
  whatIsThis: "这是什么？", readThis: "读出文字。", describeThis: "描述这张图片。",
  regionHelp: "图片的局部。方向键移动，Shift 加方向键改变大小；回车提问，Esc 退出。",
  exported: "已存为一个文件。", cleared: "对话已清空。", undo: "撤销",
  exportTitle: "关于图片的回答", exportNote: "由 vl2 生成。把指针放在词语上可以看到它的框。",
  traceSwitch: "玻璃盒：下一个回答会显示它看了哪里、用了哪些专家，耗时更长",
  glass: "玻璃盒", lookedWhere: "每个词看了哪里", tokensOf: "回答的词元",
  overview: "全图", mosaic: "切块", tokensScale: "的注意力给了图片",
  tokenLabel: "第 {at} 个词元，共 {all} 个：{name}，{p} 的注意力给了图片",
  spaceToken: "空格", endToken: "回答结束", markToken: "标记",
  tokenLooked: "{name} 把 {p} 的注意力给了图片，其余给了文字。",
  mostAt: "最多在距左 {x}、距上 {y} 处。", mostInPadding: "最多在图片四周的填充处。",
  experts: "专家", noExperts: "此模型没有专家。", allTiles: "全部", tileNamed: "切块 {name}",
  whichTile: "哪些图片词元", pictureTokens: "图片词元", answerTokens: "回答词元",
  expertsScale: "的词元用了某个专家；若平均使用则为 {even}",
  matrix: "{what}：{layers} 层中 {experts} 个专家的使用情况。方向键逐格读出。",
  layerExpert: "第 {layer} 层，专家 {expert}", usedBy: "{what} {p}（{n} 个）",
  readout: "纵向为层，横向为专家。加框：所选词元用到的专家。",
  here: "此处 {p}", asTable: "以表格显示", layer: "层", thisToken: "此词元",
  ideaDescribe: "描述这张图片。", ideaBoxes: "图里有什么？", ideaRead: "读出全部文字。",
  ideaTable: "把表格写成 Markdown。", ideaSum: "总结这一页。", ideaChart: "图表显示了哪些数值？",
  ideaTrend: "这张图表说明什么？", ideaScreen: "在这个界面上可以做什么？", ideaButtons: "按钮",
  ideaCount: "一共有几个物体？", ideaPeople: "人", ideaTitle: "标题",
};

const words = { en, zh };
let language = localStorage.getItem("vl2.language")
  ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

/** The language that is shown: "en" or "zh". */
export const shown = () => language;

/** A text, with its {places} filled. */
export function t(key, values = {}) {
  return words[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** Number with the separators of the language. */
export const number = (value) => value.toLocaleString(language === "zh" ? "zh-CN" : "en-GB");

/** A share in the language's way, finer where it is small. */
export function percent(value) {
  const told = number(Math.round(value * (value < 0.1 ? 1000 : 100)) / (value < 0.1 ? 10 : 1));
  return language === "zh" ? `${told}%` : `${told}\u00a0%`;
}

/** Write all texts that stand in the HTML. */
export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-i18n]")) {
    element.textContent = t(element.dataset.i18n);
  }
  for (const element of document.querySelectorAll("[data-i18n-label]")) {
    element.setAttribute("aria-label", t(element.dataset.i18nLabel));
    if (element.matches("button")) element.title = t(element.dataset.i18nLabel);
  }
  for (const element of document.querySelectorAll("[data-i18n-placeholder]")) {
    element.placeholder = t(element.dataset.i18nPlaceholder);
  }
}

/** Show the other language. */
export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("vl2.language", language);
  translate();
}
