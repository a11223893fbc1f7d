/** The text of a file, put in at build. */
declare module '*?raw' {
  const text: string;
  export default text;
}
